"""Secrets in texts: users, passwords and queries of URLs, tokens and keys never leave the process.

Every message, line of the log, JSON and file with a URL passes through `redact`, whatever library
wrote the text. Credentials come from netrc, the environment or fsspec's configuration, and the
query of a signed URL goes with every request (`storage.fsspec_client`), never into a text.
"""

import os
import re

_URL = re.compile(
    r"""([a-z][a-z0-9+.-]+:/{1,2})(?:[^\s/?#'"<>]*@)?([^\s?#'"<>]*)"""
    r"""(?:[?#][^\s'"<>]+(?<![.,;:)\]]))?""",
    re.IGNORECASE,
)
_NAME = r"[\w.-]*(?:token|secret|passw(?:or)?d|signature|credentials?|api_?key|access_?key(?:_id)?)"
_NAMED = re.compile(rf"""({_NAME}(?:=|["']\s*[:=]\s*)["']?)[^\s"'&,;)]+""", re.IGNORECASE)
_TOKENS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bA[KS]IA[0-9A-Z]{16}\b|\b(?:Bearer|Basic) [\w+/=.~-]{8,}"
)
_VARIABLES = re.compile(f"^{_NAME}$", re.IGNORECASE)
_SHORTEST = 8
"""Characters of a variable's value that is taken for a secret."""


def redact(text: str) -> str:
    """Remove user, password, query and fragment of each URL from a text, and tokens and keys."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _VARIABLES.match(name):
            text = text.replace(value, "***")
    text = _URL.sub(r"\1\2", text)
    return _TOKENS.sub("***", _NAMED.sub(r"\1***", text))
