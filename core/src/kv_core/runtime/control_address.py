"""Control endpoints (``tcp://host:port``) and the numeric addresses behind them.

The messaging library resolves names by itself, but on the one thread that moves everybody's bytes, and its events then
speak of the numeric address. So names are resolved here, and it only ever sees addresses.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kv_core.contract.failures import InvalidConfig
from kv_core.runtime.bootstrap.addresses import format_address, is_wildcard, parse_address

SCHEME = "tcp://"
MAX_ENDPOINT_LENGTH = 300
MAX_NAMES_WAITING = 1_024


@dataclass(frozen=True)
class Address:
    """A numeric address. ``uri``: as the messaging library writes it in its events."""

    family: int
    sockaddr: tuple[Any, ...]
    uri: str

    @property
    def is_ipv6(self) -> bool:
        """Whether it takes an IPv6 socket."""
        return self.family == socket.AF_INET6


def parse_endpoint(endpoint: str) -> tuple[str, int]:
    """Host (no brackets) and port of ``tcp://host:port``. Raises ``InvalidConfig`` for anything else."""
    if len(endpoint) > MAX_ENDPOINT_LENGTH or not endpoint.startswith(SCHEME):
        raise InvalidConfig(f"a control endpoint must be a string like 'tcp://10.0.0.1:5000', got {endpoint[:80]!r}")
    host, port = parse_address(endpoint[len(SCHEME) :])
    if is_wildcard(host):
        raise InvalidConfig(f"{endpoint!r} means every interface of a host and can't be connected to")
    return host, port


def numeric_address(host: str, port: int) -> Address | None:
    """The address of a literal; None if the host is a name. Never blocks."""
    return _first_address(host, port, socket.AI_NUMERICHOST)


def bind_address(host: str, port: int) -> str:
    """What to bind, as the messaging library wants it: port 0 is ``*``, and a name must be resolved. May block."""
    if not is_wildcard(host):
        address = _first_address(host, port, 0)
        # What does not resolve may still be the name of an interface, which the library knows.
        host = host if address is None else str(address.sockaddr[0])
    return SCHEME + format_address(host, port).rpartition(":")[0] + f":{port or '*'}"


def _first_address(host: str, port: int, flags: int) -> Address | None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags | socket.AI_NUMERICSERV)
    except (OSError, UnicodeError):
        return None
    # IPv4 first: who advertises a name most likely listens on 0.0.0.0, and `localhost` may stand for both.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    for family, _, _, _, sockaddr in found:
        if not is_wildcard(str(sockaddr[0])):
            return Address(family, sockaddr, SCHEME + format_address(str(sockaddr[0]), port))
    return None


class NameResolver:
    """Resolves host names on a thread of its own, one after the other, so that a slow name server delays names only.

    The thread starts with the first name. ``submit``, ``results`` and ``close`` belong to one thread; ``wake`` is
    called on the resolver's thread when there are results.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._asked: queue.SimpleQueue[tuple[str, str, int] | None] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[tuple[str, Address | None]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Names asked for and not yet answered."""
        return self._waiting

    def submit(self, endpoint: str, host: str, port: int) -> bool:
        """Ask for a name. False if too many wait already."""
        if self._waiting >= MAX_NAMES_WAITING or self._stop.is_set():
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kv-control-names")
            self._thread.start()
        self._waiting += 1
        self._asked.put((endpoint, host, port))
        return True

    def results(self) -> list[tuple[str, Address | None]]:
        """What has been found since: endpoint and address, or None if the name is unknown."""
        found = []
        with contextlib.suppress(queue.Empty):  # that is when we have them all
            while True:
                found.append(self._found.get_nowait())
        self._waiting -= len(found)
        return found

    def _run(self) -> None:
        while (question := self._asked.get()) is not None:
            if self._stop.is_set():
                return
            endpoint, host, port = question
            self._found.put((endpoint, _first_address(host, port, 0)))
            self._wake()

    def close(self, deadline_s: float = 5.0) -> bool:
        """Stop. False if the name server did not answer in time: the thread then ends when it does."""
        self._stop.set()
        self._asked.put(None)
        if self._thread is None:
            return True
        self._thread.join(deadline_s)
        return not self._thread.is_alive()
