"""Join or start a Ray cluster, for both stages.

Ray itself waits for minutes, deaf to Ctrl-C, for a cluster that is not there; so the address is
checked by a plain TCP connection first.
"""

import contextlib
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from cache_tools.errors import KdcacheError, UsageError
from cache_tools.runtime.signals import SIGNALS

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
    except OSError as error:
        raise _missing(address, error) from None
    level = logging.ERROR if quiet else logging.WARNING
    try:
        with _own_signals():
            ray.init(address, log_to_driver=not quiet, logging_level=level, **options)
    except Exception as error:  # Ray raises a plain one for a node that does not start in time
        if not address or address == "auto":
            raise _missing(address, error) from None
        raise UsageError(
            f"the cluster of Ray at {address} refuses this process ({_first_line(error)}). Both "
            "need the same versions of Ray and Python. Where the cluster requires a token (since "
            "Ray 2.60, if its head found one in ~/.ray/auth_token), copy that file to this machine "
            "and set RAY_AUTH_MODE=token in the environment."
        ) from None


def _missing(address: str | None, error: Exception) -> UsageError:
    return UsageError(
        f"there is no cluster of Ray at {address or 'this machine'} ({_first_line(error)}). Start "
        "one with ray start --head and give the address that it prints by --address or "
        "RAY_ADDRESS, or neither: then Ray uses this machine."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@contextlib.contextmanager
def watched(ray: Any) -> Iterator[None]:
    """Report the loss of the cluster in the body.

    Raises:
        KdcacheError: Its head or this machine's part of it is gone.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        raise _lost(_first_line(error)) from None


def fetch(ray: Any, reference: Any) -> Any:
    """Wait for a result as `ray.get`, but not for a head that is gone.

    Ray waits a minute for its head, deaf to signals, and then ends the process.

    Raises:
        KdcacheError: The cluster's head does not listen any more.
        RayError: As `ray.get`.
    """
    while True:
        try:
            return ray.get(reference, timeout=_TIMEOUT)
        except ray.exceptions.GetTimeoutError:
            if not ray.util.client.ray.is_connected():  # a client of Ray has no way to the head
                try:
                    check_reachable(ray.get_runtime_context().gcs_address)
                except OSError as error:
                    raise _lost(f"its head does not respond: {error}") from None


def _lost(reason: str) -> KdcacheError:
    return KdcacheError(
        f"the cluster of Ray was lost ({reason}). What is finished is safe: start the cluster "
        "again, if it is not Ray's own of this machine, and run the same command again."
    )


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Leave signals to this process: its handlers stay, and no process started in the body has any.

    A signal to the whole group would end a cluster of this machine before its driver could stop.
    """
    handler = signal.getsignal(signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_reachable(address: str) -> None:
    """Connect once; OSError when nothing listens at an address with a host and a port."""
    if found := re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d+)", address):
        host, port = found.groups()
        socket.create_connection((host, int(port)), _TIMEOUT).close()
