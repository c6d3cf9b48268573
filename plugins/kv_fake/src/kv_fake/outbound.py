"""The outbound side: one connection to each peer, and the thread that keeps it busy.

The thread blocks in the kernel, without the GIL, while a peer takes its time; so a frozen peer holds up nobody else. Small
frames are spared the hand-over: the owner thread writes them itself, as far as that goes without blocking.

**What may still land after a connection broke?** What the kernel had taken from us may lie in the peer's receive buffer,
and its NIC may still read it, whatever error we saw here (a reset is no proof: it may come from something in between).
Four things prove that it will not:

- the end of the peer's stream: a NIC shuts its sending side only when nothing can land any more, and the kernel closes a
  dead process's sockets only when its last thread has gone;
- the NIC's answer to a RETIRE request;
- a refused connection to the NIC's port: it listens there until all of its connections have ended, or its process (what
  lies between is taken to pass connections on, and not to refuse them in the host's name);
- an answer, on that port, of a NIC that does not know the token: another one took the place.

Until one of them is seen, such a transfer is FAILED but not quiescent.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator

from kv_core import TransferState, TransportError
from kv_core.contract.transport import PeerKey, Transfer
from kv_fake.dialing import FROZEN_S, JOIN_S, NotWelcome, dial, shutdown
from kv_fake.iovec import Pieces
from kv_fake.wire import ACK_BYTES, Ack, Descriptor, Purpose

RETIRE_AGAIN_S = 0.2
DIRECT_BYTES = 256 << 10
"""What the owner thread may write itself. More would hold up other peers, and cost it the GIL for no gain."""
_logger = logging.getLogger(__name__)


class FakeTransfer(Transfer):
    """One frame on its way. Written by one thread at a time; ``state`` last, so that who reads it finds the rest."""

    __slots__ = ("error", "garble", "head", "number", "pieces", "quiescent", "started", "state")

    def __init__(self, peer: PeerKey, number: int, head: bytes, pieces: Pieces | None, nbytes: int) -> None:
        super().__init__(peer, nbytes)
        self.number = number
        self.head = head  # header and segment table: the first of the pieces, kept alive here
        self.pieces = pieces
        self.garble: int | None = None  # a fault: flip a bit of the byte at this address when it has been read
        self.started = False
        self.state = TransferState.PENDING
        self.quiescent = False
        self.error: str | None = None

    def finish(self) -> None:
        """Every byte is in the peer's memory."""
        self.quiescent = True
        self.state = TransferState.DONE

    def fail(self, error: str, *, quiescent: bool) -> None:
        """The transfer failed; the first error stays."""
        self.error = self.error or error
        self.quiescent = self.quiescent or quiescent
        self.state = TransferState.FAILED


class Outbound:
    """The connection to one generation of one peer. ``numbers`` gives each connection its own, ``running`` is cleared
    while nothing may be sent, ``wake`` tells the owner thread that something has changed, ``bury`` gives it a broken
    socket to close (it may be in its selector).
    """

    def __init__(
        self, me: str, peer: PeerKey, descriptor: Descriptor, numbers: Iterator[int], running: threading.Event,
        wake: Callable[[], None], bury: Callable[[socket.socket], None],
    ) -> None:  # fmt: skip
        self.peer = peer
        self._me = me
        self._descriptor = descriptor
        self._numbers = numbers
        self._running = running
        self._wake = wake
        self._bury = bury
        self._lock = threading.Condition()
        self._queue: deque[FakeTransfer] = deque()  # not yet given to the kernel
        self._posted: dict[int, FakeTransfer] = {}  # given to the kernel, not acknowledged
        self._suspect: list[FakeTransfer] = []  # failed, and not proven quiescent
        self._socket: socket.socket | None = None
        self._dialing: socket.socket | None = None
        self._broken: socket.socket | None = None  # to be buried by the thread that still sends on it
        self._acks = b""
        self._number = 0
        self._to_retire = 0
        self._sending = False
        self._removed = False
        self._closed = False
        self._thread: threading.Thread | None = None

    # -- owner thread ----------------------------------------------------------------------------------------------

    def submit(self, transfer: FakeTransfer) -> None:
        """Post a frame. Never waits. Raises ``TransportError`` once the peer was removed."""
        with self._lock:
            if self._removed:
                raise TransportError(f"peer {self.peer.name[:8]} was removed", quiescent=True)
            direct = (
                self._socket is not None and not self._queue and not self._sending and self._running.is_set()
                and transfer.nbytes <= DIRECT_BYTES
            )  # fmt: skip
            if not direct:
                self._queue.append(transfer)
            else:
                self._posted[transfer.number] = transfer
                transfer.started = self._sending = True
            connection = self._socket
        if direct and connection is not None:
            self._send_directly(connection, transfer)
        self._hand_over()

    def _send_directly(self, connection: socket.socket, transfer: FakeTransfer) -> None:
        try:
            complete = transfer.pieces is None or transfer.pieces.send(connection.fileno(), wait=False)
        except OSError as error:
            self._lost(connection, f"sending failed: {error}", proof=False)
            complete = True
        with self._lock:
            if not complete and transfer.state is TransferState.PENDING:
                self._queue.appendleft(transfer)
        self._stop_sending()

    def _stop_sending(self) -> None:
        """A socket may be closed only when nobody sends on it: its number would soon be another one's."""
        with self._lock:
            self._sending = False
            broken, self._broken = self._broken, None
        if broken is not None:
            self._bury(broken)
            self._wake()

    def _hand_over(self) -> None:
        with self._lock:
            if self._queue or self._to_retire:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name=f"kv-fake-out-{self.peer.name[:8]}")
                    self._thread.start()
                self._lock.notify()

    def readable(self, connection: socket.socket) -> None:
        """Take the acknowledgements that have come in."""
        try:
            data = connection.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(connection, f"the connection broke: {error}", proof=False)
            return
        if not data:
            self._lost(connection, "the peer's NIC closed the connection", proof=True)
            return
        data = self._acks + data
        whole = len(data) - len(data) % ACK_BYTES
        self._acks = data[whole:]
        for ack in Ack.unpack_all(data[:whole]):
            with self._lock:
                transfer = self._posted.pop(ack.transfer, None)
            if transfer is not None and ack.refused:
                transfer.fail(
                    f"the peer's NIC refused segment {ack.segment}: it is not inside registered memory", quiescent=True
                )
            elif transfer is not None:
                transfer.finish()

    def cancel(self, transfer: FakeTransfer) -> None:
        """Drop a frame of which no byte was sent; one that was begun is finished."""
        with self._lock:
            if transfer.started or transfer not in self._queue:
                return
            self._queue.remove(transfer)
        transfer.fail("cancelled before a byte was sent", quiescent=True)

    def remove(self) -> None:
        """Refuse further frames and end the connection; what was begun stays until its end is proven."""
        with self._lock:
            self._removed = True
            self._lock.notify()  # the thread of a peer to whom nothing is owed ends now: nobody will call it again
            connection = self._socket
        self._fail_queued("the peer was removed")
        if connection is not None:
            self._lost(connection, "the peer was removed", proof=False)
        self._hand_over()

    @property
    def descriptor(self) -> Descriptor:
        """Where the peer's NIC is."""
        return self._descriptor

    @property
    def connection(self) -> socket.socket | None:
        """The connection whose acknowledgements are to be read."""
        return self._socket

    @property
    def idle(self) -> bool:
        """Whether a removed peer owes nothing any more."""
        with self._lock:
            return not (self._queue or self._posted or self._suspect or self._to_retire)

    def close(self) -> None:
        """End the thread and the connection. Idempotent."""
        self.remove()
        with self._lock:
            self._closed = True
            self._lock.notify()
            thread, dialing = self._thread, self._dialing
            if dialing is not None:
                shutdown(dialing)
        if thread is not None:
            thread.join(JOIN_S)
            if thread.is_alive():
                raise TransportError(f"thread {thread.name} did not end within {JOIN_S:g} s")

    # -- the peer's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._queue and not self._sending) and not self._to_retire and not self._closed:
                    if self._removed and not self._posted and not self._queue:
                        self._thread = None
                        return
                    self._lock.wait()
                if self._closed:
                    return
                retire, connection = self._to_retire, self._socket
            try:
                if retire:
                    self._prove_retired(retire)
                elif connection is None:
                    self._connect()
                else:
                    self._send_queued(connection)
            except Exception as error:
                _logger.exception("what was queued for peer %s could not be sent", self.peer.name[:8])
                self._fail_queued(f"unexpected: {error!r}")

    def _connect(self) -> None:
        self._number = number = next(self._numbers)
        try:
            connection = self._dial(Purpose.DATA, number)
        except (OSError, UnicodeError) as error:  # the latter: no host name at all
            self._fail_queued(
                f"can't connect to the peer's NIC at {self._descriptor.host}:{self._descriptor.port}: {error}"
            )
            return
        with self._lock:
            removed = self._removed
            if not removed:
                self._socket = connection
                self._acks = b""
        if removed:
            connection.close()
            self._fail_queued("the peer was removed")
        self._wake()  # the owner reads its acknowledgements from now on

    def _dial(self, purpose: Purpose, number: int) -> socket.socket:
        try:
            return dial(self._descriptor, self._me, self.peer.generation, purpose, number, self._keep)
        finally:
            with self._lock:
                self._dialing = None

    def _keep(self, connection: socket.socket) -> None:
        with self._lock:
            self._dialing = connection
            if self._closed:
                raise ConnectionAbortedError(errno.ECONNABORTED, "closed meanwhile")

    def _send_queued(self, connection: socket.socket) -> None:
        with self._lock:
            if not self._queue or self._socket is not connection:
                return
            transfer = self._queue.popleft()
            self._posted[transfer.number] = transfer
            transfer.started = self._sending = True
        try:
            if transfer.pieces is not None:
                transfer.pieces.send(connection.fileno(), wait=True, before=lambda: self._may_send(connection))
        except OSError as error:
            self._lost(connection, f"sending failed: {error}", proof=False)
        finally:
            self._stop_sending()

    def _may_send(self, connection: socket.socket) -> None:
        while self._socket is connection and not self._running.wait(FROZEN_S):
            pass  # frozen by a fault script, for as long as it says
        if self._socket is not connection:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the connection was given up")

    def _prove_retired(self, number: int) -> None:
        """Ask the peer's NIC to read connection ``number``, and those before it, no more."""
        try:
            self._dial(Purpose.RETIRE, number).close()
            proven = True
        except (ConnectionRefusedError, NotWelcome):
            proven = True
        except (OSError, UnicodeError):
            proven = False
        with self._lock:
            if proven:
                suspects, self._suspect = self._suspect, []
                self._to_retire = 0
            else:
                suspects = []
                self._lock.wait_for(lambda: self._closed, RETIRE_AGAIN_S)
        for transfer in suspects:
            transfer.fail("", quiescent=True)
        self._wake()

    # -- the end of a connection -----------------------------------------------------------------------------------

    def _lost(self, connection: socket.socket, why: str, *, proof: bool) -> None:
        with self._lock:
            if self._socket is not connection:
                return
            self._socket = None
            begun = list(self._posted.values())
            self._posted.clear()
            in_use = self._sending
            if in_use:
                self._broken = connection
            if begun and not proof:
                self._suspect += begun
                self._to_retire = self._number
            half = [transfer for transfer in self._queue if transfer.started]
            for transfer in half:
                self._queue.remove(transfer)
        shutdown(connection)
        if not in_use:
            self._bury(connection)
        for transfer in begun:
            transfer.fail(why, quiescent=proof)
        self._hand_over()
        self._wake()

    def _fail_queued(self, why: str) -> None:
        with self._lock:
            doomed = [transfer for transfer in self._queue if not transfer.started]
            for transfer in doomed:
                self._queue.remove(transfer)
        for transfer in doomed:
            transfer.fail(why, quiescent=True)
        self._wake()
