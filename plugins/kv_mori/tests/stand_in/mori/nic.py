"""What moves the bytes: a listening socket that serves peers, and a line (a broken one stays broken) to each peer.

Protocol, little endian. First byte of a connection: ``A`` asks for the size of a memory (u32 id, answer u64), ``W``
writes: per job u32 memory, u32 count, then count times (u64 offset, u64 size), then the bytes; the answer is one byte, 0 for
landed, else the connection ends.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

TICK_S = 0.05


@dataclass
class Job:
    """One pair of regions of one batch."""

    memory: int
    sources: list[tuple[int, int]]
    offsets: list[int]
    status: Any


@dataclass
class Fault:
    """What becomes of one job. code: how its status fails (None: it does not). landing: how many of its copies are written
    nevertheless; late: only when ``released`` is set (after the status has failed), and ``done`` is set then.
    """

    code: int | None = None
    message: str = "for the test's sake"
    landing: int = 0
    late: bool = False
    released: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)


class Nic:
    """Threads of one engine. They end at ``shutdown``, or with the main thread.

    For tests: ``gate`` closed, nothing is sent; ``script``: what becomes of coming jobs, one entry each.
    """

    def __init__(self, key: str, host: str) -> None:
        self.key = key
        self.memory: dict[int, tuple[int, int]] = {}
        self.engines: dict[str, tuple[str, int]] = {}
        self.lines: dict[str, Line] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.script: list[Fault | None] = []
        self.next_post_raises = False
        self.jobs = 0
        self._stop = threading.Event()
        self._listening = socket.create_server((host, 0))
        self._listening.settimeout(TICK_S)
        self.port = self._listening.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self.start(self._accept)

    @property
    def running(self) -> bool:
        return not self._stop.is_set() and threading.main_thread().is_alive()

    def start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="stand-in")
        self._threads = [*(known for known in self._threads if known.is_alive()), thread]
        thread.start()

    def shutdown(self) -> None:
        self._stop.set()
        self.gate.set()
        for thread in self._threads:
            thread.join()
        self._listening.close()

    # -- the side that is written to ---------------------------------------------------------------------------------

    def _accept(self) -> None:
        while self.running:
            try:
                connection, _ = self._listening.accept()
            except TimeoutError:
                continue
            connection.settimeout(TICK_S)
            self.start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                if self.receive(connection, 1) == b"A":
                    (number,) = struct.unpack("<I", self.receive(connection, 4))
                    connection.sendall(struct.pack("<Q", self.memory.get(number, (0, 0))[1]))
                    return
                while self._land(connection):
                    self.send(connection, [b"\0"])
            except OSError:
                return  # the peer has gone, or this engine is being closed

    def _land(self, connection: socket.socket) -> bool:
        number, count = struct.unpack("<II", self.receive(connection, 8))
        table = struct.iter_unpack("<QQ", self.receive(connection, 16 * count))
        address, size = self.memory.get(number, (0, 0))
        places = [(address + offset, length) for offset, length in table if offset + length <= size]
        if len(places) != count:
            return False  # remote access error
        for place, length in places:
            self.receive_into(connection, memoryview((ctypes.c_char * length).from_address(place)).cast("B"))
        return True

    # -- sockets with an eye on the end --------------------------------------------------------------------------------

    def receive(self, connection: socket.socket, count: int) -> bytes:
        data = bytearray(count)
        self.receive_into(connection, memoryview(data))
        return bytes(data)

    def receive_into(self, connection: socket.socket, view: memoryview) -> None:
        while view:
            try:
                got = connection.recv_into(view)
            except TimeoutError:
                got = -1
            if got == 0 or not self.running:
                raise ConnectionResetError("ended")
            view = view[max(got, 0) :]

    def send(self, connection: socket.socket, pieces: list[Any]) -> None:
        views = [memoryview(piece).cast("B") for piece in pieces]
        while views:
            try:
                sent = connection.sendmsg(views[:512])
            except TimeoutError:
                sent = 0
            if not self.running:
                raise ConnectionResetError("ended")
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]

    # -- the side that writes ------------------------------------------------------------------------------------------

    def ask(self, key: str, memory: int) -> int:
        """The size of a peer's memory; opens the line to it."""
        try:
            with socket.create_connection(self.engines[key], 5.0) as connection:
                connection.sendall(b"A" + struct.pack("<I", memory))
                connection.settimeout(5.0)
                size: int = struct.unpack("<Q", connection.recv(8, socket.MSG_WAITALL))[0]
            if key not in self.lines:
                self.lines[key] = Line(self, self.engines[key])
        except (OSError, struct.error) as error:
            raise RuntimeError(f"connect({self.engines[key]}): {error}") from error
        return size

    def is_broken(self, key: str) -> bool:
        return self.lines[key].broken

    def post(self, key: str, job: Job) -> None:
        self.jobs += 1
        self.lines[key].queue.put(job)


class Line:
    """A queue pair: jobs in order, and after the first failure none succeeds."""

    def __init__(self, nic: Nic, where: tuple[str, int]) -> None:
        self.queue: SimpleQueue[Job] = SimpleQueue()
        self.broken = False
        self._nic = nic
        self._connection = socket.create_connection(where, 5.0)
        self._connection.settimeout(TICK_S)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.sendall(b"W")
        nic.start(self._run)

    def _run(self) -> None:
        with self._connection:
            while self._nic.running:
                try:
                    job = self.queue.get(timeout=TICK_S)
                except Empty:
                    continue
                while not self._nic.gate.wait(TICK_S):
                    if not self._nic.running:
                        return
                self._perform(job, self._nic.script.pop(0) if self._nic.script else None)

    def _perform(self, job: Job, fault: Fault | None) -> None:
        from mori.cpp import StatusCode

        if self.broken:
            job.status.Update(StatusCode.ERR_RDMA_OP, "Work Request Flushed Error")
            return
        if fault is not None and fault.code is None:
            self._await(fault)
        elif fault is not None and fault.code is not None:
            if not fault.late:
                self._write(job, fault.landing)
            job.status.Update(StatusCode(fault.code), fault.message)
            if self._await(fault):
                self._write(job, fault.landing)
            fault.done.set()
            self.broken = fault.code == StatusCode.ERR_RDMA_OP
            return
        if self._write(job, len(job.sources)):
            job.status.Update(StatusCode.SUCCESS, "success")
        else:
            self.broken = True
            job.status.Update(StatusCode.ERR_RDMA_OP, "transport retry counter exceeded")

    def _await(self, fault: Fault) -> bool:
        while fault.late and self._nic.running and not fault.released.wait(TICK_S):
            continue
        return fault.late

    def _write(self, job: Job, count: int) -> bool:
        chosen = list(zip(job.sources, job.offsets, strict=True))[:count]
        head = struct.pack("<II", job.memory, len(chosen))
        head += b"".join(struct.pack("<QQ", offset, length) for (_, length), offset in chosen)
        pages = [(ctypes.c_char * length).from_address(address) for (address, length), _ in chosen]
        try:
            self._nic.send(self._connection, [head, *pages])
            return self._nic.receive(self._connection, 1) == b"\0"
        except OSError:
            return False
