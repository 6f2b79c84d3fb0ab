"""Every error a user can meet.

    KdcacheError                 exit 1   the root; one paragraph: what, expected, what now
    ├── UsageError               exit 2   ValueError          an argument or option that cannot be
    │   └── RecipeError          exit 2                       a recipe key or value that cannot be
    ├── CacheNotFound            exit 2   FileNotFoundError   no cache at this path
    ├── CacheMismatch            exit 1   ValueError          a cache of other data or teacher
    ├── CacheIncomplete          exit 1   LookupError         parts that are not committed
    ├── CacheDamaged             exit 1   OSError             bytes that differ from their record
    ├── DataError                exit 1   OSError             an image or shard that cannot be read
    ├── TeacherError             exit 1   RuntimeError        a teacher that cannot be loaded
    └── NonFinite                exit 1   ArithmeticError     NaN or Inf where numbers were due

The command line prints the text and exits with `exit_code`; a program catches the class or the
builtin beside it. `kind` is the stable, machine-readable name that `--json` reports.
"""


class KdcacheError(Exception):
    """Root of all errors this project raises on purpose."""

    exit_code = 1

    @property
    def kind(self) -> str:
        """The stable name of this error, as `--json` reports it."""
        return type(self).__name__


class UsageError(KdcacheError, ValueError):
    """An argument or option that cannot be."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe key or value that cannot be."""


class CacheNotFound(KdcacheError, FileNotFoundError):
    """There is no cache at this path."""

    exit_code = 2


class CacheMismatch(KdcacheError, ValueError):
    """The cache was made from other data, another teacher or other views."""


class CacheIncomplete(KdcacheError, LookupError):
    """Parts that are needed are not committed."""


class CacheDamaged(KdcacheError, OSError):
    """Bytes of the cache differ from their commit record."""


class DataError(KdcacheError, OSError):
    """An image or a shard cannot be read."""


class TeacherError(KdcacheError, RuntimeError):
    """A teacher cannot be loaded or does not fit the data."""


class NonFinite(KdcacheError, ArithmeticError):
    """NaN or Inf where numbers were due."""
