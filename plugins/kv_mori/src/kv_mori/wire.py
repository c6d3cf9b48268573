"""What a transport tells its peers, and the strict look at what peers tell: MORI unpacks whatever it is given, natively."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

from kv_core import TransportError

MAGIC = "kv-mori"
VERSION = 1
MAX_BYTES = 1 << 20
_MAX_FIELDS = 32
_MAX_TEXT = 1_024
_MAX_INT = 2**64


class Memory(msgspec.Struct, array_like=True, frozen=True):
    """One registered region: its index, its length in bytes, and MORI's packed ``MemoryDesc``."""

    index: int
    nbytes: int
    packed: bytes


class Descriptor(msgspec.Struct, array_like=True, frozen=True):
    """``engine``: MORI's packed ``EngineDesc``."""

    magic: str
    version: int
    engine: bytes
    memory: tuple[Memory, ...]


_DECODER = msgspec.msgpack.Decoder(Descriptor)


def pack(engine: bytes, memory: tuple[Memory, ...]) -> bytes:
    """The bytes for peers. Raises ``TransportError`` if there are too many regions for core's limit of 1 MiB."""
    data = msgspec.msgpack.encode(Descriptor(MAGIC, VERSION, engine, memory))
    if len(data) > MAX_BYTES:
        raise TransportError(
            f"the descriptor of {len(memory)} memory regions takes {len(data)} bytes, at most {MAX_BYTES} are allowed: "
            "register fewer, larger buffers",
            quiescent=True,
        )
    return data


def unpack(data: bytes) -> Descriptor:
    """Check a peer's bytes down to the fields of MORI's own descriptors. Raises ``ValueError`` with what is wrong."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"a descriptor of {len(data)} bytes, at most {MAX_BYTES} are allowed")
    try:
        found = _DECODER.decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(f"a descriptor that is none of kv-mori's ({error})") from error
    if found.magic != MAGIC or found.version != VERSION:
        raise ValueError(f"a descriptor {found.magic!r} version {found.version}, expected {MAGIC!r} version {VERSION}")
    key, *rest = _flat(found.engine, "engine")
    # EngineDesc: key, node id, host name, host, port, pid. Later versions may append fields.
    if len(rest) < 5 or [type(value) for value in (key, *rest[:5])] != [str, str, str, str, int, int]:
        raise ValueError("an engine descriptor with other fields than MORI's")
    if not key or not 0 <= rest[3] <= 65_535:
        raise ValueError(f"an engine descriptor with key {key!r} and port {rest[3]}")
    ipaddress.IPv4Address(rest[2])  # MORI takes a name for 255.255.255.255
    indices = {memory.index for memory in found.memory}
    if len(indices) != len(found.memory):
        raise ValueError("a region twice")
    for memory in found.memory:
        owner, *fields = _flat(memory.packed, f"memory of region {memory.index}")
        # MemoryDesc: engine key, id, device, bus id, address, size, location, ...
        if len(fields) < 6 or owner != key or fields[4] != memory.nbytes or memory.nbytes < 1:
            raise ValueError(f"memory of region {memory.index} that is not {memory.nbytes} bytes of engine {key!r}")
    return found


def _flat(packed: bytes, what: str) -> list[Any]:
    """The fields of one of MORI's descriptors: an array of numbers and short strings, nothing nested."""
    try:
        fields = msgspec.msgpack.decode(packed)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{what}: no MORI descriptor ({error})") from error
    if not isinstance(fields, list) or not 2 <= len(fields) <= _MAX_FIELDS:
        raise ValueError(f"{what}: no MORI descriptor (no array of 2 to {_MAX_FIELDS} fields)")
    for value in fields:
        if isinstance(value, (str, bytes)):
            fits = len(value) <= _MAX_TEXT
        else:
            fits = isinstance(value, int) and -_MAX_INT < value < _MAX_INT
        if not fits:
            raise ValueError(f"{what}: a field that is no number and no short text")
    return fields
