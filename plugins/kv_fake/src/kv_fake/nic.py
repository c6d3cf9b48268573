"""The inbound side: listens, and writes what peers send straight into registered memory, or sends what they read straight
from it (pull). A NIC does one of the two. One thread a connection.

A thread that serves a connection blocks in the kernel, without the GIL, for as long as bytes come; a peer that sends
nothing costs nothing.

**How a connection is ended from outside** (a fence, a RETIRE, ``close``), so that nothing lands afterwards, and so that
the peer, who takes the end of the stream for a proof, does not see it a moment too early. The socket alone can't do it:
what lies in its receive buffer can still be read after ``shutdown``. So each connection has a ``gate``, held while a
frame lands. First the connection is marked as ended, and its reading side shut, which wakes the thread and tells the
peer nothing; then the gate is taken: no frame lands now, and none will, since who finds the mark inside of the gate
turns back. Only then is the sending side shut, too. A peer that reads takes the end of its stream for no proof: its connection
is shut both ways at once, so that a thread which sends leaves the gate, whatever the peer does.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import secrets
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kv_core import TransportError
from kv_fake.dialing import JOIN_S, exactly, shutdown
from kv_fake.iovec import Pieces
from kv_fake.memory import U64, RegisteredMemory
from kv_fake.wire import (
    ACCEPTED,
    HEADER_BYTES,
    LOOPBACK_BUFFER_BYTES,
    PREAMBLE_BYTES,
    REFUSED,
    SEGMENT_BYTES,
    TOKEN_BYTES,
    Ack,
    Header,
    Preamble,
    Purpose,
)

MAX_CONNECTIONS = 4_096
PREAMBLE_S = 10.0
"""How long a stranger may take to say who he is."""
ACCEPT_AGAIN_S = 0.05
FROZEN_S = 0.05
SCRATCH_BYTES = 1 << 20


@dataclass(eq=False)
class Inbound:
    """One connection from a peer, and the thread that serves it."""

    socket: socket.socket
    thread: threading.Thread | None = None
    preamble: Preamble | None = None
    refused: bool = False
    ended: bool = False
    gate: threading.Lock = field(default_factory=threading.Lock)
    landing: U64 | None = None  # regions of the frame that lands, or is read, now


@dataclass
class NicCounts:
    """What the NIC has seen."""

    connections: int = 0
    foreign: int = 0
    frames: int = 0
    refused_frames: int = 0
    exceptions: int = 0


class Nic:
    """Listens for peers from ``open`` to ``close``."""

    def __init__(self, memory: RegisteredMemory, logger: logging.Logger, purpose: Purpose = Purpose.DATA) -> None:
        self._memory = memory
        self._purpose = purpose  # what peers may connect for, besides asking: DATA to write, or READ
        self._logger = logger
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self.port = 0
        self.counts = NicCounts()
        self.running = threading.Event()  # cleared while the NIC is frozen by a fault script
        self.running.set()
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._inbound: set[Inbound] = set()
        self._fenced: dict[str, int] = {}  # writer -> highest generation that may not write any more
        self._retired: dict[str, int] = {}  # writer -> highest number of its connections that are read no more
        self._closing = threading.Event()

    def open(self, host: str) -> None:
        """Listen on a free port of this host. Raises ``TransportError``."""
        try:
            family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
            self._listener = socket.create_server((host, 0), family=family, backlog=1024)
            if ipaddress.ip_address(address[0]).is_loopback:  # inherited by what it accepts
                self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LOOPBACK_BUFFER_BYTES)
        except OSError as error:
            raise TransportError(
                f"can't listen on host {host!r}: {error}. Set TransferConfig.host to an address of this machine",
                quiescent=True,
            ) from error
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name=f"kv-fake-nic-{self.port}")
        self._thread.start()

    def fence(self, writer: str, generation: int) -> None:
        """Return when no byte of this writer's generations up to this one can land. Raises ``TransportError``."""
        with self._lock:
            self._fenced[writer] = max(generation, self._fenced.get(writer, generation))
            doomed = [c for c in self._inbound if self._is_from(c, writer) and self._refuses(c.preamble)]
        self._end(doomed)

    def evict(self, regions: Sequence[int]) -> None:
        """Return when no frame lands in these regions, which were deregistered before. Their connections end."""
        with self._lock:
            doomed = [c for c in self._inbound if c.landing is not None and np.isin(regions, c.landing).any()]
        self._end(doomed)

    def close(self) -> None:
        """Stop reading, then stop listening: who finds the port refused knows that nothing is read. Idempotent.

        Raises ``TransportError``, and leaves the port open, if a thread does not stop.
        """
        with self._lock:
            self._closing.set()  # from now on a new connection is closed at once
            doomed = list(self._inbound)
        self.running.set()
        self._end(doomed)
        for inbound in doomed:
            _join(inbound.thread)
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)  # ends accept()
            _join(self._thread)
            listener.close()

    # -- connections -----------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        listener = self._listener
        while listener is not None:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._closing.is_set() or error.errno == errno.EINVAL:
                    break
                self.counts.exceptions += 1  # no descriptors left, say: the next one may fare better
                self._closing.wait(ACCEPT_AGAIN_S)
                continue
            try:
                self._welcome(connection)
            except Exception:
                self.counts.exceptions += 1  # no threads left, say
                connection.close()
                self._logger.exception("the software NIC could not take a connection")

    def _welcome(self, connection: socket.socket) -> None:
        inbound = Inbound(connection)
        inbound.thread = threading.Thread(target=self._serve, args=(inbound,), name=f"kv-fake-in-{self.port}")
        with self._lock:
            if self._closing.is_set() or len(self._inbound) >= MAX_CONNECTIONS:
                connection.close()
                return
            inbound.thread.start()  # under the lock: what is in the set can be joined
            self._inbound.add(inbound)
            self.counts.connections += 1

    def _serve(self, inbound: Inbound) -> None:
        try:
            inbound.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            inbound.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # the peer's host may vanish
            if self._greet(inbound):
                while self._frame(inbound):
                    pass  # until the stream ends
        except OSError as error:
            self._logger.debug("a connection to the software NIC ended: %s", error)
        except Exception:
            self.counts.exceptions += 1
            self._logger.exception("a connection to the software NIC was dropped")
        finally:
            inbound.socket.close()
            with self._lock:
                self._inbound.discard(inbound)

    def _greet(self, inbound: Inbound) -> bool:
        """Read the preamble and answer it; True if frames shall follow."""
        inbound.socket.settimeout(PREAMBLE_S)
        preamble = Preamble.unpack(exactly(inbound.socket, PREAMBLE_BYTES))
        if preamble is None or not secrets.compare_digest(preamble.token, self.token):
            self.counts.foreign += 1
            if preamble is not None:
                inbound.socket.sendall(REFUSED)  # whoever asks for an earlier NIC of this port learns that it has gone
            return False
        if preamble.purpose == Purpose.RETIRE:
            self._retire(preamble)
        with self._lock:
            inbound.preamble = preamble
            wanted = preamble.purpose in (Purpose.DATA, Purpose.READ)
            inbound.refused = wanted and (
                preamble.purpose != self._purpose or self._refuses(preamble) or inbound.ended
            )  # fmt: skip
        inbound.socket.settimeout(None)
        inbound.socket.sendall(REFUSED if inbound.refused else ACCEPTED)
        return wanted and not inbound.refused

    def _retire(self, preamble: Preamble) -> None:
        """Read the writer's connections up to this number no more; one that is not greeted yet will be refused."""
        with self._lock:
            writer = preamble.writer
            self._retired[writer] = max(preamble.number, self._retired.get(writer, 0))
            doomed = [c for c in self._inbound if self._is_from(c, writer) and self._refuses(c.preamble)]
        self._end(doomed)

    def _is_from(self, inbound: Inbound, writer: str) -> bool:
        preamble = inbound.preamble
        return preamble is not None and preamble.writer == writer and preamble.purpose == self._purpose

    def _refuses(self, preamble: Preamble | None) -> bool:
        assert preamble is not None, "asked for greeted connections only"
        return (
            preamble.generation <= self._fenced.get(preamble.writer, -1)
            or preamble.number <= self._retired.get(preamble.writer, -1)
        )  # fmt: skip

    def _end(self, doomed: Sequence[Inbound]) -> None:
        """End connections; on return nothing of them can land (see above). Raises ``TransportError``."""
        for inbound in doomed:
            inbound.ended = True
            shutdown(inbound.socket, socket.SHUT_RDWR if self._purpose is Purpose.READ else socket.SHUT_RD)
        for inbound in doomed:
            if not inbound.gate.acquire(timeout=JOIN_S):
                raise TransportError(f"a thread of the software NIC did not stop within {JOIN_S:g} s")
            inbound.gate.release()
            shutdown(inbound.socket, socket.SHUT_RDWR)

    # -- frames ----------------------------------------------------------------------------------------------------

    def _frame(self, inbound: Inbound) -> bool:
        """Take one frame; False at the end of the stream or after nonsense."""
        connection = inbound.socket
        head = exactly(connection, HEADER_BYTES, may_end=True)
        header = Header.unpack(head) if head else None
        if header is None:
            self.counts.foreign += bool(head)
            return False
        table = np.frombuffer(exactly(connection, header.segments * SEGMENT_BYTES), "<u8").reshape(-1, 3)
        region, offset, length = (np.ascontiguousarray(table[:, i], np.uint64) for i in range(3))
        if int(length.max()) > header.payload or int(length.sum()) != header.payload:
            self.counts.foreign += 1
            return False
        self.counts.frames += 1
        if self._purpose is Purpose.READ:
            refused = self._lend(inbound, header, region, offset, length)
            self.counts.refused_frames += refused >= 0
        else:
            refused = self._land(inbound, region, offset, length)
            if refused >= 0:
                self.counts.refused_frames += 1
                _drain(connection, header.payload)
        if refused >= 0 or self._purpose is Purpose.DATA:
            connection.sendall(Ack(header.transfer, refused >= 0, max(refused, 0)).pack())
        return True

    def _lend(self, inbound: Inbound, header: Header, region: U64, offset: U64, length: U64) -> int:
        """Send the bytes that a peer reads, after the acknowledgement; no byte, and the segment's number, as ``_land``."""
        with inbound.gate:
            inbound.landing = region
            try:
                address, refused = self._memory.locate(region, offset, length)
                if refused < 0:
                    head = np.frombuffer(Ack(header.transfer, False, 0).pack(), np.uint8)
                    start = np.uint64(head.__array_interface__["data"][0])
                    pieces = Pieces(
                        np.concatenate(([start], address)), np.concatenate(([np.uint64(head.size)], length))
                    )  # fmt: skip
                    pieces.send(inbound.socket.fileno(), wait=True, before=lambda: self._may_land(inbound))
            finally:
                inbound.landing = None
        return refused

    def _land(self, inbound: Inbound, region: U64, offset: U64, length: U64) -> int:
        """Write a frame's bytes into memory; if a segment is not inside registered memory, no byte, and its number."""
        with inbound.gate:
            inbound.landing = region  # before the look at what is registered: ``evict`` looks in the opposite order
            try:
                address, refused = self._memory.locate(region, offset, length)
                if refused < 0:
                    pieces = Pieces(address, length)
                    pieces.receive(inbound.socket.fileno(), before=lambda: self._may_land(inbound))
            finally:
                inbound.landing = None
        return refused

    def _may_land(self, inbound: Inbound) -> None:
        while not inbound.ended and not self.running.wait(FROZEN_S):
            pass  # frozen by a fault script, for as long as it says
        if inbound.ended:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the connection was ended from this side")


def _drain(connection: socket.socket, count: int) -> None:
    scratch = bytearray(min(count, SCRATCH_BYTES))
    while count:
        got = connection.recv_into(scratch, min(count, len(scratch)))
        if got == 0:
            raise ConnectionResetError(errno.ECONNRESET, "the stream ended early")
        count -= got


def _join(thread: threading.Thread | None) -> None:
    if thread is not None:
        thread.join(JOIN_S)
        if thread.is_alive():
            raise TransportError(f"thread {thread.name} of the software NIC did not end within {JOIN_S:g} s")
