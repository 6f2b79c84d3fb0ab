"""The log of a process: one handler, control characters escaped, secrets removed."""

import logging

from cache_tools.runtime import text
from cache_tools.runtime.secrets import redact

log = logging.getLogger("kdcache")


class LineFormatter(logging.Formatter):
    """Lines of the log, shaped as errors are."""

    def format(self, record: logging.LogRecord) -> str:
        """Shape a line; secrets go first, as one cut in half is no longer known."""
        return text.message(redact(super().format(record)))


def set_up(handler: logging.Handler, level: int) -> None:
    """Send the log to one handler, in place of those of before."""
    handler.setFormatter(LineFormatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False
