"""Scatter and gather by the kernel: ``sendmsg`` and ``recvmsg`` straight from and into memory, by address.

Python's own ``socket.sendmsg`` wants one object for each piece; here a piece is a row of a NumPy array. The calls
release the GIL. A wrong address makes the kernel say EFAULT; it can't crash the process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

IOV_MAX = 1024
"""Pieces that the kernel takes in one call."""
RECEIVE_BYTES = 16 << 20
"""Filled in one call, or one piece if that is longer: who ends a connection or freezes the NIC waits for one call."""


class _MessageHeader(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32), ("iov", ctypes.c_void_p),
        ("iov_length", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )  # fmt: skip


_libc = ctypes.CDLL(None, use_errno=True)
for _function in (_libc.sendmsg, _libc.recvmsg):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = (ctypes.c_int, ctypes.POINTER(_MessageHeader), ctypes.c_int)


class Pieces:
    """Pieces of memory that are sent or filled one after the other, over as many calls as it takes."""

    def __init__(self, address: npt.NDArray[np.uint64], length: npt.NDArray[np.uint64]) -> None:
        self._iov = np.stack((address, length), axis=1)
        self._ends = np.cumsum(length, dtype=np.uint64)
        self._next = 0
        self._moved = 0
        self.nbytes = int(self._ends[-1]) if len(self._ends) else 0
        self._header = _MessageHeader()

    def flip_bit(self, position: int) -> None:
        """Send the byte at this position with one bit flipped; the memory itself is not touched."""
        piece = int(np.searchsorted(self._ends, np.uint64(position), side="right"))
        before = position - (int(self._ends[piece - 1]) if piece else 0)
        address, length = (int(value) for value in self._iov[piece])
        self._flipped = np.frombuffer(ctypes.string_at(address + before, 1), np.uint8) ^ np.uint8(1)
        three = (
            (address, before), (self._flipped.__array_interface__["data"][0], 1), (address + before + 1, length - before - 1)
        )  # fmt: skip
        rows = np.array([row for row in three if row[1]], np.uint64)
        self._iov = np.concatenate((self._iov[:piece], rows, self._iov[piece + 1 :]))
        self._ends = np.cumsum(self._iov[:, 1], dtype=np.uint64)

    def address_of(self, position: int) -> int:
        """Where the byte at this position lies. Before any is moved."""
        piece = int(np.searchsorted(self._ends, np.uint64(position), side="right"))
        return int(self._iov[piece, 0]) + position - (int(self._ends[piece - 1]) if piece else 0)

    @property
    def done(self) -> bool:
        """Whether every byte has been moved."""
        return self._moved == self.nbytes

    def send(self, fd: int, *, wait: bool, before: Callable[[], None] | None = None) -> bool:
        """Send; True when all is sent. Without ``wait`` it stops when the socket takes no more. ``before`` is called ahead
        of each system call and may raise. Raises ``OSError``.
        """
        flags = socket.MSG_NOSIGNAL if wait else socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
        return self._move(_libc.sendmsg, fd, flags, before)

    def receive(self, fd: int, *, before: Callable[[], None] | None = None) -> bool:
        """Fill all pieces; waits. Raises ``OSError``, and ``ConnectionResetError`` at the end of the stream."""
        # The kernel waits until all pieces of a call are full: a third less processor time than a call for each bit that
        # has come in, and no need for the GIL in between.
        return self._move(_libc.recvmsg, fd, socket.MSG_WAITALL, before, RECEIVE_BYTES)

    def _move(
        self, call: ctypes._NamedFuncPointer, fd: int, flags: int, before: Callable[[], None] | None,
        most: int = 1 << 62,
    ) -> bool:  # fmt: skip
        while not self.done:
            if before is not None:
                before()
            self._header.iov = self._iov.ctypes.data + 16 * self._next
            self._header.iov_length = self._count(most)
            moved = call(fd, ctypes.byref(self._header), flags)
            if moved > 0:
                self._advance(moved)
            elif moved == 0:
                raise ConnectionResetError(errno.ECONNRESET, "the stream ended in the middle of a frame")
            else:
                number = ctypes.get_errno()
                if number in (errno.EAGAIN, errno.EWOULDBLOCK):
                    return False
                if number != errno.EINTR:
                    raise OSError(number, os.strerror(number))
        return True

    def _count(self, most: int) -> int:
        """How many pieces go into the next call: at most so many bytes, but one piece at least."""
        count = min(IOV_MAX, len(self._iov) - self._next)
        if int(self._ends[self._next + count - 1]) - self._moved > most:
            count = int(np.searchsorted(self._ends, np.uint64(self._moved + most), side="right")) - self._next
        return max(count, 1)

    def _advance(self, moved: int) -> None:
        self._moved += moved
        self._next = int(np.searchsorted(self._ends, np.uint64(self._moved), side="right"))
        if self._next < len(self._iov):
            left = int(self._ends[self._next]) - self._moved
            self._iov[self._next, 0] += self._iov[self._next, 1] - np.uint64(left)
            self._iov[self._next, 1] = left
