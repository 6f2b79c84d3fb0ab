"""Teacher-logit caches, the contract that two labs share, and the tools that work on them.

`cache_tools` imports neither `pipeline` (which writes caches) nor `train` (which reads them), and
no torch. Its kernel is five modules, each named after the step of a picture's way that it holds:
`spec` (what was cached), `rng` and `views` (the views, drawn again at any time), `codec` (logits
to a few bytes and back) and `store` (the Zarr layout and its commit records).
"""

from cache_tools.version import __version__ as __version__
