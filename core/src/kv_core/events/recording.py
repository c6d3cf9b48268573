"""A stream in a file: ``KVEVREC1`` and a line feed, then for each message a length (4 bytes, big-endian) and msgpack
``[seconds since the first, replayed, frames]``. A file that ends in the middle of a message is read up to there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, final

import msgspec

from kv_core.events.consumer import Message
from kv_core.events.errors import EventError

MAGIC = b"KVEVREC1\n"
MAX_MESSAGE = 1 << 30
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[float, bool, list[bytes]]).decode


@final
class Recorder:
    """Writes messages; a context manager that owns the file."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._file.write(MAGIC)
        self._began: float | None = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, message: Message) -> None:
        """Append a message."""
        if self._began is None:
            self._began = message.at
        data = _encode((message.at - self._began, message.replayed, message.frames))
        self._file.write(len(data).to_bytes(4, "big") + data)


def read_recording(path: Path) -> Iterator[Message]:
    """The messages of a file, ``at`` in seconds since the first. Raises ``EventError`` if it is no recording."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise EventError(f"{path} is no recording of KV events: it does not begin with {MAGIC!r}")
        while head := file.read(4):
            size = int.from_bytes(head, "big")
            if size > MAX_MESSAGE:
                raise EventError(f"{path}: a message of {size} bytes; the file is damaged")
            data = file.read(size)
            if len(head) < 4 or len(data) < size:
                return
            try:
                at, replayed, frames = _decode(data)
            except msgspec.MsgspecError as error:
                raise EventError(f"{path}: the file is damaged: {error}") from error
            yield Message(frames, replayed, at)
