"""What a transport tells its peers, and the strict look at what peers tell: MORI unpacks whatever it is given, natively."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

from kv_core import TransportError

MAGIC = "kv-mori"
VERSION = 1
MAX_BYTES = 1 << 20
_MAX_TEXT = 1_024
_MAX_DEVICE = 1_024
_PLACES = (1, 2)  # MemoryLocationType: CPU, GPU


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


def unpack(data: bytes, own_engine: bytes, own_memory: bytes) -> Descriptor:
    """Check a peer's bytes down to the fields of MORI's own descriptors, which must be of the same kinds as in ours: MORI
    reads 64 bytes wherever it expects 64, whatever there is. Raises ``ValueError`` with what is wrong.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"a descriptor of {len(data)} bytes, at most {MAX_BYTES} are allowed")
    try:
        found = _DECODER.decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(f"a descriptor that is none of kv-mori's ({error})") from error
    if found.magic != MAGIC or found.version != VERSION:
        raise ValueError(f"a descriptor {found.magic!r} version {found.version}, expected {MAGIC!r} version {VERSION}")
    # EngineDesc: key, node id, host name, host, port, pid.
    key, _, _, host, port, *_ = _fields(found.engine, own_engine, "engine")
    if not key or not 0 <= port <= 65_535:
        raise ValueError(f"an engine descriptor with key {key!r} and port {port}")
    ipaddress.IPv4Address(host)  # MORI takes a name for 255.255.255.255
    if len({memory.index for memory in found.memory}) != len(found.memory):
        raise ValueError("a region twice")
    for memory in found.memory:
        # MemoryDesc: engine key, id, device, bus id, address, size, location, ...
        what = f"memory of region {memory.index}"
        owner, _, device, _, address, size, place, *_ = _fields(memory.packed, own_memory, what)
        if owner != key or size != memory.nbytes or size < 1 or not 0 < address <= address + size <= 2**64:
            raise ValueError(f"{what} that is not {memory.nbytes} bytes of engine {key!r}")
        if not -1 <= device < _MAX_DEVICE or place not in _PLACES:
            raise ValueError(f"{what}, on device {device} in place {place}")
    return found


def _fields(packed: bytes, own: bytes, what: str) -> list[Any]:
    """The fields of one of MORI's descriptors: as many and of the same kinds as in one of our own."""
    try:
        fields = msgspec.msgpack.decode(packed)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{what}: no MORI descriptor ({error})") from error
    if not isinstance(fields, list) or list(map(_kind, fields)) != list(map(_kind, msgspec.msgpack.decode(own))):
        raise ValueError(f"{what}: other fields than the descriptors of MORI have here; is it another version there?")
    if any(isinstance(value, str) and len(value) > _MAX_TEXT for value in fields):
        raise ValueError(f"{what}: a text of more than {_MAX_TEXT} characters")
    return fields


def _kind(value: object) -> object:
    return len(value) if isinstance(value, bytes) else type(value)
