"""The layout rules that the simulated ranks play by: equal memory everywhere, some sources, some destinations."""

from __future__ import annotations

from typing import Any

from core.tests.simulation.memory import LAYERS
from kv_core.contract.failures import MessageError
from kv_core.layout.coverage import Coverage
from kv_core.protocol.handshake import Difference, Fields, PeerLayout, SourceRanks


class Items:
    """Numbers of items by pool."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self._sizes = sizes

    def num_items(self, pool: str) -> int | None:
        """See ``PeerLayout``."""
        return self._sizes.get(pool)


class Rules:
    """See ``kv_core.protocol.handshake.LayoutRules``."""

    def __init__(self, destinations: int = 1) -> None:
        self._destinations = destinations

    def read(self, wire: dict[str, Any]) -> Items:
        """The layout, or ``MessageError``."""
        if not all(isinstance(size, int) and size >= 0 for size in wire.values()):
            raise MessageError("sizes must be non-negative numbers")
        return Items(dict(wire))

    def differences(self, remote: PeerLayout, fields: Fields) -> list[Difference]:
        """None: the fields say it all."""
        return []

    def sources(self, sizes: tuple[int, int, int, int], dp_rank: int) -> SourceRanks:
        """All ranks of the prefill instance."""
        if not 0 <= dp_rank < sizes[3]:
            raise ValueError(f"prefill_dp_rank {dp_rank} must lie in 0..{sizes[3] - 1}")
        return SourceRanks(tuple((tp, 0, 0, dp_rank) for tp in range(sizes[0])), self._destinations)

    def coverage(self, pages: int) -> Coverage:
        """The real one."""
        return Coverage(pages, LAYERS)
