"""What crosses the software NIC's TCP connections. Pure: bytes to values and back, little-endian throughout.

A connection begins with a preamble that says who calls, whom he wants, and what for; the NIC answers one byte. On a
data connection follow frames: a header, a table of segments, and the bytes of the segments one after the other. Each
frame is answered by an acknowledgement when its bytes are in memory, or when it was refused. On a read connection the bytes
go the other way, after the acknowledgement.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAGIC = b"KVNIC\x00\x00\x01"
"""Begins every preamble; the last byte is the version."""
TOKEN_BYTES = 16
"""Length of the secret that a NIC gives to its peers in its descriptor: whoever knows it may write."""
MAX_SEGMENTS = 1 << 20
MAX_PAYLOAD = 1 << 40
ACCEPTED, REFUSED = b"\x06", b"\x15"
LOOPBACK_BUFFER_BYTES = 4 << 20
"""Of a socket's buffer on each side, where both ends share a machine: a thread that waits for a processor for a
millisecond then holds up the other side less often than with what the kernel chooses by itself (measured: 6 % faster)."""


class Purpose(IntEnum):
    """What a connection is for."""

    DATA = 1  # frames follow
    RETIRE = 2  # close the data connection of this number, then answer: proof that it is read no more
    PROBE = 3  # just answer
    READ = 4  # frames without bytes follow: each is answered by an acknowledgement and the bytes


class Preamble(NamedTuple):
    """First bytes of a connection. ``writer`` and ``generation`` are the caller's; ``number`` is the connection's."""

    token: bytes
    writer: str
    generation: int
    purpose: int
    number: int

    def pack(self) -> bytes:
        """The bytes."""
        return _PREAMBLE.pack(MAGIC, self.token, self.writer.encode(), self.generation, self.purpose, self.number)

    @classmethod
    def unpack(cls, data: bytes) -> Preamble | None:
        """The preamble, or None if these bytes are none."""
        magic, token, writer, generation, purpose, number = _PREAMBLE.unpack(data)
        if magic != MAGIC or purpose not in iter(Purpose):
            return None
        return cls(token, writer.rstrip(b"\0").decode("ascii", "replace"), generation, purpose, number)


_PREAMBLE = struct.Struct(f"<8s{TOKEN_BYTES}s64sQBQ")
PREAMBLE_BYTES = _PREAMBLE.size


class Header(NamedTuple):
    """A frame's header: number of the transfer, number of segments, bytes of payload."""

    transfer: int
    segments: int
    payload: int

    def pack(self) -> bytes:
        """The bytes."""
        return _HEADER.pack(_FRAME, *self)

    @classmethod
    def unpack(cls, data: bytes) -> Header | None:
        """The header, or None if these bytes are none."""
        mark, transfer, segments, payload = _HEADER.unpack(data)
        if mark != _FRAME or not 0 < segments <= MAX_SEGMENTS or payload > MAX_PAYLOAD:
            return None
        return cls(transfer, segments, payload)


_FRAME = 0x454D4152_4652564B
_HEADER = struct.Struct("<QQQQ")
HEADER_BYTES = _HEADER.size
SEGMENT_BYTES = 24


class Ack(NamedTuple):
    """Answer to a frame: all its bytes are in memory, or (``refused``) segment ``segment`` lies outside of it."""

    transfer: int
    refused: bool
    segment: int

    def pack(self) -> bytes:
        """The bytes."""
        return _ACK.pack(self.transfer, self.refused, self.segment)

    @classmethod
    def unpack_all(cls, data: bytes) -> list[Ack]:
        """Whole acknowledgements, one after the other."""
        return [cls(transfer, bool(refused), segment) for transfer, refused, segment in _ACK.iter_unpack(data)]


_ACK = struct.Struct("<QQQ")
ACK_BYTES = _ACK.size


class Descriptor(NamedTuple):
    """What a peer needs to reach a NIC."""

    host: str
    port: int
    token: bytes

    def pack(self) -> bytes:
        """The bytes."""
        return struct.pack("<H", self.port) + self.token + self.host.encode()

    @classmethod
    def unpack(cls, data: bytes) -> Descriptor:
        """The descriptor. Raises ``ValueError``."""
        if not 2 + TOKEN_BYTES < len(data) <= 512:
            raise ValueError(f"a descriptor of {len(data)} bytes")
        (port,) = struct.unpack_from("<H", data)
        host = data[2 + TOKEN_BYTES :].decode("ascii")
        if port == 0 or not host.isprintable():
            raise ValueError(f"a descriptor with host {host!r} and port {port}")
        return cls(host, port, data[2 : 2 + TOKEN_BYTES])


def segment_table(
    region: npt.NDArray[np.uint64], offset: npt.NDArray[np.uint64], length: npt.NDArray[np.uint64]
) -> bytes:
    """The segment table of a frame: (remote region, remote offset, length) for each segment."""
    return np.stack((region, offset, length), axis=1).astype("<u8").tobytes()
