"""Teacher-logit caches, the contract that two labs share, and the tools that work on them.

`cache_tools` imports neither `pipeline` (which writes caches) nor `train` (which reads them), and
no torch. Its kernel is five rooms, each named after a step on the way of an image: `spec` (the
specification of a cache), `numerics` and `views` (the views, drawn again at any time), `targets`
(logits to a few bytes and back) and `store` (the Zarr layout and its commit records).
"""

from cache_tools.version import __version__ as __version__
