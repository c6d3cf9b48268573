"""Whether a peer's engine still answers, and whether it has provably ended."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

LISTEN = "0A"
TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
SETTLE_S = 2.0
"""The engine retries a lost connection after one second, and fails what waits for it then."""
LOOK_EVERY_S = 0.5


def answers(host: str, port: int, timeout_s: float) -> bool:
    """Whether the engine at this address serves its RPC port now. Takes up to ``timeout_s``.

    The engine's own ``send_probe`` blocks for a minute if the peer is stopped. This ends our side of a connection and
    sees whether the engine ends its own: a stopped process's kernel accepts connections, but nobody closes them.
    """
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(1) == b""
    except (OSError, UnicodeError):  # the latter: no host name at all
        return False


def is_local(host: str) -> bool:
    """Whether this address (no name: names may change) belongs to this host and network namespace."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
        with socket.socket(family, kind, number) as test:
            test.bind(address)
            return True
    except OSError:
        return False


def _listens(port: int, *, unknown: bool) -> bool:
    """Whether any process of this network namespace listens on this TCP port, by the kernel's own tables.

    ``unknown`` is the answer where they can't be read.
    """
    try:
        found = _listens_in(TABLES[0], f":{port:04X}")
        with suppress(FileNotFoundError):  # a kernel without IPv6
            found = found or _listens_in(TABLES[1], f":{port:04X}")
    except (OSError, LookupError, ValueError):
        return unknown
    return found


def _listens_in(table: Path, port: str) -> bool:
    with table.open(encoding="ascii") as lines:
        for line in lines:
            fields = line.split()
            if fields[3] == LISTEN and fields[1].endswith(port):
                return True
    return False


class Death:
    """Collects the proof that a peer's engine has ended. One thread.

    A refused connection is no proof: a firewall refuses too, while what is connected goes on. So it is only ever proven
    for a peer on this host: nobody listens on its port any more, which the engine holds until its own threads have ended,
    or the kernel until the last thread of the process has. A child that inherited the port keeps it, which proves
    nothing; nor does a port that nobody was ever seen to listen on (behind address translation, say).
    """

    def __init__(self, host: str, port: int) -> None:
        self._port = port
        self._watchable = is_local(host) and _listens(port, unknown=False)
        self._next_look = 0.0
        self._gone_since: float | None = None

    def proven_for(self, ended: float, now: float) -> bool:
        """Whether nothing of a call that returned at ``ended`` can move a byte any more."""
        if not self._watchable:
            return False
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY_S
            if _listens(self._port, unknown=True):
                self._gone_since = None
            elif self._gone_since is None:
                self._gone_since = now
        return self._gone_since is not None and now - max(self._gone_since, ended) >= SETTLE_S
