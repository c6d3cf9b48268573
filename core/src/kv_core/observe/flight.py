"""The flight recorder's file: an observer that appends each room's history, for ``kv-core trace``. Needs nothing installed.

A recording is lines of JSON. The first says what this is, which process wrote it and what its clock shows; so do further
ones of the kind, from time to time. All others are ``RoomEvent``s: how a room ended, and when its pages were free.
"""

from __future__ import annotations

import os
import socket
import threading
from importlib.metadata import version
from io import FileIO
from pathlib import Path
from time import monotonic, time_ns
from typing import TYPE_CHECKING

import msgspec

from kv_core.contract.failures import InvalidConfig
from kv_core.contract.observers import only
from kv_core.contract.records import RoomEvent, RoomEventKind

if TYPE_CHECKING:
    from typing_extensions import Self

SCHEMA = 1
MAX_BYTES = 64 * 1024 * 1024
CLOCK_EVERY_S = 60.0
_ENCODER = msgspec.json.Encoder(enc_hook=str)


class Header(msgspec.Struct, frozen=True, tag_field="recording", tag="kv-core-flight"):
    """Who wrote a recording. ``clock``: processes that say the same here (and not nothing) read the same monotonic clock.
    ``monotonic_s`` and ``wall_s`` were read at the same time, ``wall_s`` in seconds of the Unix epoch.
    """

    schema: int
    core: str
    host: str
    pid: int
    clock: str
    monotonic_s: float
    wall_s: float


class FlightRecorder:
    """Give it to ``create_manager(..., observers=[it])``; one may serve several managers. Rooms have a history unless
    ``TransferConfig.flight_recorder`` is 0, and without one there is nothing to write.

    ``path``: the file, which is begun anew. When it has ``max_bytes`` it becomes ``path`` with ``.1`` behind it, instead of
    the one before, so that at most twice as much is kept. Raises ``InvalidConfig`` if it can't be written. Writes on
    core's dispatcher thread, each room as it ends, so that a process that is killed loses none that had ended.
    """

    def __init__(self, path: str | Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = Path(path)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._clock_at = 0.0
        self._size = 0
        self._ended = False
        try:
            self._file = self._opened()
        except OSError as error:
            text = f"the flight recorder can't write {self.path} ({error}): choose a file in a folder that is there"
            raise InvalidConfig(text) from error

    @only(RoomEventKind.CONCLUDED, RoomEventKind.RELEASED)
    def kv_room_event(self, event: RoomEvent) -> None:
        """See ``hookspecs.kv_room_event``."""
        if event.kind is not RoomEventKind.CONCLUDED and not _tells_something(event):
            return
        line = _ENCODER.encode(event) + b"\n"
        with self._lock:
            if self._ended:
                return
            if self._file.closed:  # it could not be begun anew before
                self._file = self._opened()
            if self._size + len(line) > self._max_bytes:
                self._turn()
            elif event.time_s - self._clock_at > CLOCK_EVERY_S:
                self._begin(self._file)
            self._write(self._file, line)

    def close(self) -> None:
        """Close the file. Idempotent; close the managers first."""
        with self._lock:
            self._ended = True
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _turn(self) -> None:
        self._file.close()
        self.path.replace(self.path.with_name(self.path.name + ".1"))
        self._file = self._opened()

    def _opened(self) -> FileIO:
        """The file, begun anew."""
        file = FileIO(self.path, "wb")
        try:
            self._size = 0
            self._begin(file)
        except BaseException:
            file.close()
            raise
        return file

    def _begin(self, file: FileIO) -> None:
        header = read_clock()
        self._clock_at = header.monotonic_s
        self._write(file, _ENCODER.encode(header) + b"\n")

    def _write(self, file: FileIO, line: bytes) -> None:
        self._size += len(line)
        rest = memoryview(line)
        while rest:
            rest = rest[file.write(rest) or 0 :]


def read_clock() -> Header:
    """What this process has to say of itself, and what its clocks show now."""
    before = monotonic()
    wall = time_ns()
    between = (before + monotonic()) / 2
    return Header(
        SCHEMA, version("kv-core"), socket.gethostname(), os.getpid(), _clock_name(), between, wall / 1e9
    )  # fmt: skip


def _clock_name() -> str:
    """What the monotonic clock belongs to: one boot of one machine, in one time namespace. Empty where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    try:
        space = str(Path("/proc/self/ns/time").readlink())
    except OSError:
        space = ""  # a kernel without time namespaces has but one
    return f"{boot} {space}".strip()


def _tells_something(event: RoomEvent) -> bool:
    """Whether a room's release is news: it took its time, or something happened meanwhile, or the room had failed."""
    if event.kind is not RoomEventKind.RELEASED:
        return False
    return bool(event.drain_latency_s) or len(event.history) > 1 or event.state.name == "Failed"
