"""The reading side of a pull: one connection to each peer, and the thread that asks for bytes and takes them.

A request goes out, and its answer is filled into memory before the next one is sent. So what may still land is known here, and
nowhere else: the thread is in the kernel for this transfer, or it is not. Whatever broke, a transfer that the thread has left is
quiescent. A peer that stands still leaves its transfer pending; ``cancel`` and ``remove`` shut the connection, and the thread is
out of it at once.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator

from kv_core import TransportError
from kv_core.contract.transport import PeerKey
from kv_fake.dialing import FROZEN_S, JOIN_S, dial, exactly, shutdown
from kv_fake.outbound import FakeTransfer
from kv_fake.wire import ACK_BYTES, Ack, Descriptor, Purpose

_logger = logging.getLogger(__name__)


class Puller:
    """Reads from one generation of one peer. Has the face of ``Outbound``."""

    connection: socket.socket | None = None
    """Nothing is read from a socket by the owner thread."""

    def __init__(
        self, me: str, peer: PeerKey, descriptor: Descriptor, numbers: Iterator[int], running: threading.Event,
        wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self.peer = peer
        self.descriptor = descriptor
        self._me = me
        self._numbers = numbers
        self._running = running
        self._wake = wake
        self._lock = threading.Condition()
        self._queue: deque[FakeTransfer] = deque()
        self._current: FakeTransfer | None = None  # its bytes may be landing
        self._given_up = False  # the current one shall end early
        self._socket: socket.socket | None = None
        self._removed = False
        self._thread: threading.Thread | None = None

    # -- owner thread ----------------------------------------------------------------------------------------------

    def submit(self, transfer: FakeTransfer) -> None:
        """Queue a request. Never waits. Raises ``TransportError`` once the peer was removed."""
        with self._lock:
            if self._removed:
                raise TransportError(f"peer {self.peer.name[:8]} was removed", quiescent=True)
            self._queue.append(transfer)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"kv-fake-pull-{self.peer.name[:8]}")
                self._thread.start()
            self._lock.notify()

    def cancel(self, transfer: FakeTransfer) -> None:
        """End a request early: one that is under way with its connection, for what is left of it can't be told from the next."""
        with self._lock:
            if transfer is self._current:
                self._give_up()
                return
            if transfer not in self._queue:
                return
            self._queue.remove(transfer)
        transfer.fail("cancelled before a byte was read", quiescent=True)

    def remove(self) -> None:
        """Refuse further requests and end the connection."""
        with self._lock:
            self._removed = True
            queued, self._queue = self._queue, deque()
            self._give_up()
            self._lock.notify()
        for transfer in queued:
            transfer.fail("the peer was removed", quiescent=True)

    def _give_up(self) -> None:
        self._given_up = self._current is not None
        if self._socket is not None:
            shutdown(self._socket)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way any more."""
        with self._lock:
            return not (self._queue or self._current)

    def readable(self, connection: socket.socket) -> None:
        """Never called: there is no ``connection``."""

    def close(self) -> None:
        """End the thread and the connection. Idempotent."""
        self.remove()
        thread = self._thread
        if thread is not None:
            thread.join(JOIN_S)
            if thread.is_alive():
                raise TransportError(f"thread {thread.name} did not end within {JOIN_S:g} s")

    # -- the peer's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._queue and not self._removed:
                    self._lock.wait()
                if self._removed:
                    self._hang_up()
                    return
                transfer = self._current = self._queue.popleft()
                self._given_up = False
                transfer.started = True
            error = self._pull(transfer)
            with self._lock:
                self._current = None
                if error is not None or self._given_up:  # shut, even if the last byte had come before
                    self._hang_up()
            if transfer.error is None and error is None:
                transfer.finish()
            else:
                transfer.fail(error or "", quiescent=True)
            self._wake()

    def _pull(self, transfer: FakeTransfer) -> str | None:
        """None, or what went wrong. On return nothing of the transfer can land."""
        try:
            connection = self._connected()
            self._may_go_on()
            connection.sendall(transfer.head)
            (ack,) = Ack.unpack_all(exactly(connection, ACK_BYTES))
            if ack.transfer != transfer.number:
                return f"the peer's NIC answered request {ack.transfer}, expected {transfer.number}"
            if ack.refused:
                transfer.error = f"the peer's NIC refused segment {ack.segment}: it is not inside registered memory"
                return None
            if transfer.pieces is not None:
                transfer.pieces.receive(connection.fileno(), before=self._may_go_on)
            if transfer.garble is not None:
                ctypes.c_uint8.from_address(transfer.garble).value ^= 1
        except (OSError, UnicodeError) as error:
            where = self.descriptor
            return f"reading from the peer's NIC at {where.host}:{where.port} failed: {error}"
        except Exception as error:
            _logger.exception("what was asked of peer %s could not be read", self.peer.name[:8])
            return f"unexpected: {error!r}"
        return None

    def _connected(self) -> socket.socket:
        connection = self._socket
        if connection is None:
            connection = dial(
                self.descriptor, self._me, self.peer.generation, Purpose.READ, next(self._numbers), self._keep
            )  # fmt: skip
        return connection

    def _keep(self, connection: socket.socket) -> None:
        """From here on another thread may shut it."""
        with self._lock:
            if self._removed or self._given_up:
                raise ConnectionAbortedError(errno.ECONNABORTED, "given up meanwhile")
            self._socket = connection

    def _may_go_on(self) -> None:
        while not self._given_up and not self._running.wait(FROZEN_S):
            pass  # frozen by a fault script, for as long as it says
        if self._given_up:
            raise ConnectionAbortedError(errno.ECONNABORTED, "given up from this side")

    def _hang_up(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()
