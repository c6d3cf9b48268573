"""Is a failed connection attempt a refusal? Asks with a plain ``connect()`` of its own.

The messaging library reports every attempt that failed with one and the same event, be it refused (nobody listens there:
the process is gone), timed out (a black hole: nothing is known) or unroutable. Only the first is proof of anything.
"""

from __future__ import annotations

import errno
import select
import socket
from collections import deque
from dataclasses import dataclass

from kv_core.runtime.control_address import Address

MAX_IN_FLIGHT = 256
PROBE_TIMEOUT_S = 1.0


@dataclass
class _Probe:
    address: Address
    socket: socket.socket
    deadline: float


class RefusalProbes:
    """Connection attempts in flight, a bounded number. Belongs to one thread; nothing here blocks."""

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._flying: dict[int, _Probe] = {}  # by descriptor, oldest first
        self._known: set[str] = set()  # uris that fly or wait
        self._waiting: deque[Address] = deque()

    def open(self) -> int:
        """Returns the file descriptor that becomes readable when a probe has an answer."""
        self._epoll = select.epoll()
        return self._epoll.fileno()

    def __len__(self) -> int:
        return len(self._known)

    def ask(self, address: Address) -> None:
        """Probe this address soon, unless that is already under way."""
        if address.uri not in self._known:
            self._known.add(address.uri)
            self._waiting.append(address)

    def next_deadline(self) -> float | None:
        """When ``step`` has to be called at the latest."""
        return next((probe.deadline for probe in self._flying.values()), None)

    def step(self, now: float) -> list[Address]:
        """Launch what waits, collect answers. Returns the addresses that refused."""
        refused: list[Address] = []
        if self._flying:
            self._collect(refused)
        while self._flying:
            oldest = next(iter(self._flying))
            if self._flying[oldest].deadline > now:
                break
            self._end(oldest)
        while self._waiting and len(self._flying) < MAX_IN_FLIGHT:
            self._launch(self._waiting.popleft(), now, refused)
        return refused

    def _launch(self, address: Address, now: float, refused: list[Address]) -> None:
        assert self._epoll is not None
        try:
            plain = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:  # out of descriptors: nothing is learnt; the next failed attempt asks again
            self._known.discard(address.uri)
            return
        code = plain.connect_ex(address.sockaddr)
        if code == errno.EINPROGRESS:
            self._flying[plain.fileno()] = _Probe(address, plain, now + PROBE_TIMEOUT_S)
            self._epoll.register(plain.fileno(), select.EPOLLOUT)
            return
        plain.close()
        self._known.discard(address.uri)
        if code == errno.ECONNREFUSED:
            refused.append(address)

    def _collect(self, refused: list[Address]) -> None:
        assert self._epoll is not None
        for descriptor, _ in self._epoll.poll(0):
            probe = self._flying[descriptor]
            if probe.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED:
                refused.append(probe.address)
            self._end(descriptor)

    def _end(self, descriptor: int) -> None:
        probe = self._flying.pop(descriptor)
        self._known.discard(probe.address.uri)
        probe.socket.close()  # which also takes it out of the epoll set

    def close(self) -> None:
        """Give up all probes."""
        for descriptor in list(self._flying):
            self._end(descriptor)
        self._waiting.clear()
        self._known.clear()
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
