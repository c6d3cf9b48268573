"""What a peer is told of this engine: where it listens, and what it speaks."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

MAGIC = b"kv-mooncake/1 "
MAX_LENGTH = 300
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_PROTOCOLS = ("tcp", "rdma")
_PORTS = 65_536


class Descriptor(NamedTuple):
    """``host``: name or address, IPv6 without brackets. ``port``: the engine's RPC port. ``protocol``: tcp or rdma."""

    host: str
    port: int
    protocol: str

    def session(self, number: int = 0) -> str:
        """What the engine calls this peer. It means the same for every ``number``, and looks different."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{'0' * number}{self.port}"

    def pack(self) -> bytes:
        """Magic and version, protocol, port, host, with a blank between each."""
        return MAGIC + f"{self.protocol} {self.port} {self.host}".encode("ascii")

    @classmethod
    def unpack(cls, data: bytes) -> Descriptor:
        """Raises ``ValueError`` for everything else than what ``pack`` makes: it goes into a native library."""
        if len(data) > MAX_LENGTH or not data.startswith(MAGIC):
            raise ValueError(f"a descriptor of another kind or version ({data[:24]!r}), not kv-mooncake's")
        try:
            protocol, port, host = data[len(MAGIC) :].decode("ascii").split(" ")
        except ValueError:  # UnicodeDecodeError is one
            raise ValueError(f"a damaged descriptor {data!r}") from None
        if protocol not in _PROTOCOLS:
            raise ValueError(f"a descriptor for the protocol {protocol[:24]!r}, known are {_PROTOCOLS}")
        if not (port.isdigit() and len(port) <= len(str(_PORTS)) and 0 < int(port) < _PORTS):
            raise ValueError(f"a descriptor with the port {port[:24]!r}")
        check_host(host)
        return cls(host, int(port), protocol)


def check_host(host: str) -> None:
    """Raises ``ValueError`` unless it is an address or a host name."""
    try:
        scoped = isinstance(address := ip_address(host), IPv6Address) and address.scope_id is not None
    except ValueError:
        scoped = not _NAME.fullmatch(host)
    if scoped:
        raise ValueError(f"a descriptor with the host {host[:64]!r}, which is neither an address nor a host name")
