"""Remote agents: what a peer tells of itself, and what is known of it here."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kv_nixl.transport import NixlTransfer

MAGIC = b"KVNX"
VERSION = 1
HEAD = struct.Struct("<4sBIH")  # magic, version, CRC-32 of what follows, length of the JSON text; then agent metadata


@dataclass(frozen=True)
class Descriptor:
    """What a peer has to know: NIXL's name of the backend, where its process is, and the agent's metadata."""

    backend: str
    place: dict[str, Any]
    metadata: bytes

    def pack(self) -> bytes:
        """As bytes."""
        text = json.dumps({"backend": self.backend, "place": self.place}).encode()
        return HEAD.pack(MAGIC, VERSION, zlib.crc32(text + self.metadata), len(text)) + text + self.metadata

    @classmethod
    def unpack(cls, data: bytes) -> Descriptor:
        """From bytes that came over the network. Raises ``ValueError`` with a sentence."""
        if len(data) < HEAD.size or data[: len(MAGIC)] != MAGIC:
            raise ValueError("something that is no descriptor of this backend")
        _, version, checksum, length = HEAD.unpack_from(data)
        if version != VERSION:
            raise ValueError(f"a descriptor of version {version}, this side has {VERSION}: install one kv-nixl on both")
        if zlib.crc32(data[HEAD.size :]) != checksum:
            raise ValueError("a descriptor that was damaged on its way")
        try:
            told = json.loads(data[HEAD.size : HEAD.size + length])
            backend, place = str(told["backend"]), dict(told["place"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError("a descriptor that can't be read") from error
        return cls(backend, place, data[HEAD.size + length :])


def starts_with_name(metadata: bytes, name: str) -> bool:
    """Whether an agent's metadata begins with this agent's name, as they do up to NIXL 1.5."""
    text = name.encode()
    return metadata.startswith(b"nixlSerDes|Agent" + len(text).to_bytes(8, "little") + text + b"|")


class RemoteAgent:
    """One remote agent. ``pending``: transfers to it that NIXL has not concluded, oldest first. ``broken``: its endpoint
    failed, or may have; it is loaded anew before the next submission. ``epoch``: grows with each loading, which ends
    all lists made before.
    """

    def __init__(self, name: str, told: Descriptor) -> None:
        self.name = name
        self.metadata = told.metadata
        self.place = told.place
        self.pending: dict[NixlTransfer, None] = {}
        self.loaded = False
        self.broken = False
        self.epoch = 0
        self.fabric = ""
