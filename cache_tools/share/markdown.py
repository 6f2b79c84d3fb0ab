"""Names of others as text in Markdown, which never becomes a heading, a link or HTML.

In a code span nothing is markup but its end; elsewhere entities are never markup (CommonMark 0.31,
sections 6.1 and 2.5). Unprintable characters are shown as U+FFFD.
"""

import re

from cache_tools.runtime.text import printable

_MARKUP = re.compile(r"""[!-'*+/:-@\[-^`{-~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=www)\.""", re.I)


def code(name: str) -> str:
    """Code span of a name, in a table as well."""
    name = printable(name).replace("|", "\u00a6")  # no escape of it holds in and out of tables
    longest = max(map(len, re.findall("`+", name)), default=0)
    pad = " " if longest or not name.strip() or name != name.strip() else ""
    return f"{'`' * (longest + 1)}{pad}{name}{pad}{'`' * (longest + 1)}"


def text(words: str) -> str:
    """Words as they are, with an entity for each character that could be markup."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", printable(words))
