"""Version of the installed package, as caches, model cards and reports record it."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kdcache")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+uninstalled"
