"""Opening the listening sockets of a host and a port, on every address that the host's name stands for."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from contextlib import ExitStack

from kv_core.contract.failures import BootstrapError, InvalidConfig
from kv_core.runtime.bootstrap.addresses import canonical_host, format_address

BACKLOG = 1_024
_PORT_TRIES = 8
_ABSENT_FAMILY = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Listening, non-blocking TCP sockets: one for each address of ``host``, all on one port (0 takes a free one).

    ``::`` listens on IPv4 too. Raises ``BootstrapError`` with what went wrong and what to change.
    """
    try:
        canonical_host(host)
    except InvalidConfig as error:
        raise BootstrapError(f"the bootstrap server can't listen: {error}") from None
    if not 0 <= port <= 65_535:
        raise BootstrapError(
            f"the bootstrap server can't listen on port {port}: it must lie in 0..65535 (0: a free one)"
        )
    where = format_address(host, port)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise BootstrapError(f"the bootstrap server can't listen on {where}: the host is unknown ({error})") from error
    places = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    for attempt in range(_PORT_TRIES):
        try:
            return _open_all(places, port)
        except OSError as error:
            # With port 0 the first address chose a port that another one may have taken already: choose again.
            if port == 0 and error.errno == errno.EADDRINUSE and attempt + 1 < _PORT_TRIES:
                continue
            raise BootstrapError(f"the bootstrap server can't listen on {where}: {_explain(error)}") from error
    raise AssertionError("unreachable")


def _open_all(places: Sequence[tuple[int, tuple[object, ...]]], port: int) -> list[socket.socket]:
    with ExitStack() as undo:
        sockets: list[socket.socket] = []
        absent: OSError | None = None
        for family, address in places:
            chosen = port or (sockets[0].getsockname()[1] if sockets else 0)
            try:
                sockets.append(undo.enter_context(_open(family, (address[0], chosen, *address[2:]))))
            except OSError as error:
                # A name may stand for a family that this machine doesn't have; any one address will do.
                if error.errno not in _ABSENT_FAMILY:
                    raise
                absent = error
        if not sockets:
            raise absent or OSError(errno.EADDRNOTAVAIL, "the host has no address")
        undo.pop_all()
        return sockets


def _open(family: int, address: tuple[object, ...]) -> socket.socket:
    with ExitStack() as undo:
        listener = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.setblocking(False)
        # A restart on the same port must not wait for the old connections' TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        listener.bind(address)
        listener.listen(BACKLOG)
        undo.pop_all()
        return listener


def _explain(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"another process listens there ({error.strerror}); stop it or choose another port (0 takes a free one)"
    if error.errno in _ABSENT_FAMILY:
        return f"this machine has no such address ({error.strerror}); choose one of its own, or 0.0.0.0 for all"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"not permitted ({error.strerror}); choose a port from 1024 on"
    return str(error)
