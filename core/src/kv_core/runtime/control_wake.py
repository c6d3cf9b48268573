"""Waking a thread that waits in ``poll`` from any other thread: a socket pair, with at most one byte on its way."""

from __future__ import annotations

import contextlib
import socket
import threading


class WakeUp:
    """``signal`` from any thread; all else by the owner. Signals before ``open`` and after ``close`` do nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending = False
        self._reader: socket.socket | None = None
        self._writer: socket.socket | None = None

    def open(self) -> int:
        """Make the pair. Returns the file descriptor that becomes readable after a signal."""
        with self._lock:
            self._reader, self._writer = socket.socketpair()
            self._reader.setblocking(False)
            self._writer.setblocking(False)
            self._pending = False
            return self._reader.fileno()

    def signal(self) -> None:
        """Make the descriptor readable; costs next to nothing if it already is. Never blocks, never raises."""
        if self._pending:
            return
        # The lock keeps the descriptor from being closed, and its number from being given away, while it is written to.
        with self._lock:
            if self._writer is not None and not self._pending:
                self._pending = True
                # Full can't be (one byte at most); a signal that fails has nobody to wake.
                with contextlib.suppress(OSError):
                    self._writer.send(b"\0")

    def clear(self) -> None:
        """Take the signal. Who signals from now on is heard: look at what was handed over *after* this call."""
        if self._reader is not None:
            with contextlib.suppress(BlockingIOError):  # nothing to take
                self._reader.recv(16)
        self._pending = False

    def close(self) -> None:
        """Close both ends."""
        with self._lock:
            for end in (self._reader, self._writer):
                if end is not None:
                    end.close()
            self._reader = self._writer = None
