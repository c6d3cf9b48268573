"""The protocol's questions about layouts, answered by ``kv_core.layout`` for one rank."""

from __future__ import annotations

from typing import Any

from kv_core.contract.failures import InvalidConfig, MessageError
from kv_core.contract.memory import KVArgs, Topology
from kv_core.layout import Coverage, MemoryLayout, differences, source_ranks
from kv_core.protocol.handshake import Difference, Fields, PeerLayout, SourceRanks


class Rules:
    """``LayoutRules`` of the rank that ``args`` describes. Pure: may be used under the lock."""

    def __init__(self, args: KVArgs) -> None:
        self.layout = MemoryLayout.of(args)
        self._topology = args.topology
        self._layers = sorted({buffer.layer for buffer in args.kv.buffers})

    def read(self, wire: dict[str, Any]) -> MemoryLayout:
        """The peer's layout, checked. Raises ``MessageError``."""
        return MemoryLayout.from_wire(wire)

    def differences(self, remote: PeerLayout, fields: Fields) -> list[Difference]:
        """What stands in the way of a plan between this rank and the peer."""
        assert isinstance(remote, MemoryLayout), "made by read()"
        found = differences(self.layout, remote, local_topology=self._topology, remote_topology=topology_of(fields))
        told = ("tp_size", "pp_size", "cp_size")  # the handshake compares these by itself
        return [Difference(d.field, d.local, d.remote) for d in found if d.field not in told]

    def sources(self, sizes: tuple[int, int, int, int], dp_rank: int) -> SourceRanks:
        """Which prefill ranks serve this decode rank. Raises ``ValueError`` with the rule that is broken."""
        mapping = source_ranks(self._topology, sizes, dp_rank)
        return SourceRanks(mapping.required, mapping.expected_destinations)

    def coverage(self, pages: int) -> Coverage:
        """A new count of what has been sent of a room of ``pages`` pages."""
        return Coverage(pages, self._layers)


def topology_of(fields: Fields) -> Topology:
    """The peer's place, from its handshake fields. Raises ``MessageError``."""
    names = [f"{axis}_{what}" for axis in ("tp", "pp", "cp", "dp") for what in ("rank", "size")]
    values = {name: fields.get(name, 0 if name.endswith("rank") else 1) for name in names}
    if any(not isinstance(value, int) for value in values.values()):
        raise MessageError(f"ranks and sizes must be integers, got {values}")
    try:
        return Topology(**{name: int(value) for name, value in values.items()})
    except InvalidConfig as error:
        raise MessageError(str(error)) from error
