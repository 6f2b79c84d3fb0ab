"""The commands of a cache, and `main`, the entry point of `kdcache`.

In: command lines. Out: results on stdout, messages on stderr, exit codes. Imports every room of
`cache_tools`, inside the commands, so that `--help` answers at once; nothing imports this room but
the commands of `pipeline` and `train`, for their shared options.
"""

from cache_tools.cli.main import console

__all__ = ["console"]
