"""Errors for a user's mistakes and for damaged or missing files, as one tree.

    KdcacheError                 exit 1   the root; one paragraph: what, expected, what now
    ├── UsageError               exit 2   ValueError          an impossible argument or option
    │   └── RecipeError          exit 2                       an impossible recipe key or value
    ├── CacheNotFound            exit 2   FileNotFoundError   no cache at this path
    ├── RunNotFound              exit 2   FileNotFoundError   no run at this path
    ├── CacheMismatch            exit 1   ValueError          a cache of other data or teacher
    ├── CacheIncomplete          exit 1   LookupError         parts without a commit record
    ├── CacheDamaged             exit 1   OSError             bytes that differ from their record
    ├── DataError                exit 1   OSError             an image or shard that cannot be read
    ├── TeacherError             exit 1   RuntimeError        a teacher that cannot be loaded
    ├── NonFinite                exit 1   ArithmeticError     NaN or Inf in place of numbers
    └── OutOfMemory              exit 1   MemoryError         a picture this machine cannot hold

The command line prints the text and exits with `exit_code`; a program catches the class or the
builtin beside it. `kind` is the stable, machine-readable name that `--json` reports.
"""


class KdcacheError(Exception):
    """Root of all errors that this project raises on purpose.

    Attributes:
        exit_code: Exit code of a command that this error ends.
    """

    exit_code = 1

    @property
    def kind(self) -> str:
        """Stable name of this error, as `--json` reports it."""
        return type(self).__name__


class UsageError(KdcacheError, ValueError):
    """Impossible argument or option."""

    exit_code = 2


class RecipeError(UsageError):
    """Impossible recipe key or value."""


class CacheNotFound(KdcacheError, FileNotFoundError):
    """No cache at this path."""

    exit_code = 2


class RunNotFound(KdcacheError, FileNotFoundError):
    """No run at this path."""

    exit_code = 2


class CacheMismatch(KdcacheError, ValueError):
    """Cache of other data, another teacher or other views."""


class CacheIncomplete(KdcacheError, LookupError):
    """Required parts that are not committed."""


class CacheDamaged(KdcacheError, OSError):
    """Bytes of a cache that differ from their commit record."""


class DataError(KdcacheError, OSError):
    """Image or shard that cannot be read."""


class TeacherError(KdcacheError, RuntimeError):
    """Teacher that cannot be loaded or does not fit the data."""


class NonFinite(KdcacheError, ArithmeticError):
    """NaN or Inf in place of numbers."""


class OutOfMemory(KdcacheError, MemoryError):
    """Picture for which this machine has too little memory at the moment."""
