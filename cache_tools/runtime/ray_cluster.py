"""Join or start a Ray cluster, for both stages.

Ray itself waits for minutes, deaf to Ctrl-C, for a cluster that is not there; so the address is
checked by a plain TCP connection first.
"""

import logging
import os
import re
import socket
from typing import Any

from cache_tools.errors import UsageError

_TIMEOUT = 10.0
"""Seconds for a cluster's head to respond."""


def join(ray: Any, address: str | None = None, quiet: bool = False) -> None:
    """Join the cluster at an address or at $RAY_ADDRESS, else start one on this machine.

    Raises:
        UsageError: There is no cluster.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        check_reachable(address or "")
        level = logging.ERROR if quiet else logging.WARNING
        ray.init(address, log_to_driver=not quiet, logging_level=level, **options)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"there is no cluster of Ray at {address or 'this machine'} ({first}). Start one with "
            "ray start --head and give the address that it prints by --address or RAY_ADDRESS, or "
            "neither: then Ray uses this machine."
        ) from None


def check_reachable(address: str) -> None:
    """Connect once; OSError when nothing listens at an address with a host and a port."""
    if found := re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d+)", address):
        host, port = found.groups()
        socket.create_connection((host, int(port)), _TIMEOUT).close()
