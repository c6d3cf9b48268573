"""The yardstick: the same pages through one blocking TCP connection, as well as Python's own socket calls can do it.

No protocol at all: both sides know the page sets beforehand, lists of ``memoryview`` are made before the clock starts,
neighbouring pages are one piece, every system call moves up to 1,024 pieces, ``MSG_WAITALL`` lets the kernel fill them
all (without it the receiver takes a quarter more processor time), and one byte for each room comes back when it has
landed. Congestion control is Reno: BBR, the default on some systems, halves the rate on loopback.
"""

from __future__ import annotations

import socket
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness.memory import Memory, page_sets
from benchmarks.harness.work import Work

IOV_MAX = 1024
Groups = list[list[memoryview]]


class SocketWay:
    """Both sides; ``source`` says which. ``options``: ``sndbuf`` and ``rcvbuf`` in bytes (absent: the system's own)."""

    def __init__(self, memory: Memory, *, source: bool) -> None:
        self._memory = memory
        self._source = source
        self._listener: socket.socket | None = None
        self._socket: socket.socket | None = None
        self._options: dict[str, Any] = {}
        self._made: dict[tuple[int, int, str], list[Groups]] = {}

    def open(self, options: dict[str, Any]) -> dict[str, Any]:
        """Listen, on the receiving side."""
        self._options = options
        if self._source:
            return {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        if "rcvbuf" in options:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options["rcvbuf"])
        return {"port": self._listener.getsockname()[1]}

    def connect(self, told: dict[str, Any]) -> None:
        """Connect, on the sending side."""
        if not self._source:
            return
        self._socket = socket.socket()
        if "sndbuf" in self._options:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._options["sndbuf"])
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")  # BBR paces, even on loopback
        self._socket.connect(("127.0.0.1", told["port"]))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self, work: Work) -> dict[str, Any]:
        """Rooms one after the other; the sender is at most ``concurrency`` rooms ahead of what has landed."""
        slots = self._groups(work)
        if self._source:
            return self._send(work, slots)
        return self._receive(work, slots)

    def _send(self, work: Work, slots: list[Groups]) -> dict[str, Any]:
        connection = self._socket
        assert connection is not None, "connected"
        connection.recv(1)  # the receiver has made its lists
        start = monotonic()
        landed = 0
        for number in range(work.rooms):
            while number - landed >= work.concurrency:
                landed += len(connection.recv(64))
            for group in slots[number % len(slots)]:
                left = group
                while left:
                    left = _rest(left, connection.sendmsg(left))
        while landed < work.rooms:
            landed += len(connection.recv(min(64, work.rooms - landed)))
        return {"start": start, "end": monotonic()}

    def _receive(self, work: Work, slots: list[Groups]) -> dict[str, Any]:
        if self._socket is None:
            assert self._listener is not None, "open"
            self._socket, _ = self._listener.accept()
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = self._socket
        connection.sendall(b"r")
        for number in range(work.rooms):
            for group in slots[number % len(slots)]:
                left = group
                while left:
                    moved = connection.recvmsg_into(left, 0, socket.MSG_WAITALL)[0]
                    if not moved:
                        raise ConnectionResetError("the sender has gone")
                    left = _rest(left, moved)
            connection.sendall(b"\1")
        return {}

    def _groups(self, work: Work) -> list[Groups]:
        """For each slot the system calls' lists of pieces."""
        key = (work.pages, work.concurrency, work.pattern)
        if key not in self._made:
            shape = self._memory.shape
            sets = page_sets(shape.pages, work.pages, work.concurrency, work.pattern, 1 if self._source else 2)
            self._made = {key: [self._pieces(pages, work.pattern) for pages in sets]}
        return self._made[key]

    def _pieces(self, pages: npt.NDArray[np.int64], pattern: str) -> Groups:
        pool, views = self._memory.bytes, []
        for buffer in range(self._memory.shape.buffers):
            if pattern == "contiguous":
                views.append(pool[buffer, pages[0] : pages[-1] + 1].reshape(-1).data)
            else:
                views += [pool[buffer, page].data for page in pages.tolist()]
        return [views[i : i + IOV_MAX] for i in range(0, len(views), IOV_MAX)]

    def close(self) -> None:
        """Close the sockets."""
        for each in (self._socket, self._listener):
            if each is not None:
                each.close()
        self._socket = self._listener = None


def _rest(group: list[memoryview], moved: int) -> list[memoryview]:
    """What is left of a list of pieces."""
    for position, piece in enumerate(group):
        if moved < len(piece):
            return [piece[moved:], *group[position + 1 :]]
        moved -= len(piece)
    return []
