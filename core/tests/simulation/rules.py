"""The layout rules that the simulated ranks play by: equal memory everywhere, some sources, some destinations."""

from __future__ import annotations

from typing import Any

from core.tests.simulation.memory import LAYERS
from kv_core.contract.failures import MessageError
from kv_core.layout.coverage import Coverage
from kv_core.layout.placement import PageSide, Placement
from kv_core.protocol.handshake import Difference, Fields, PeerLayout, SourceRanks, differences

PAGES = Placement(PageSide(16), PageSide(16))


class Items:
    """Numbers of items by pool."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self._sizes = sizes

    def num_items(self, pool: str) -> int | None:
        """See ``PeerLayout``."""
        return self._sizes.get(pool)

    def moves(self, pool: str) -> bool:
        """Everything does."""
        return True

    idle = False

    def prefix_pages(self, prefix: int) -> int:
        """Pages are equal."""
        return prefix

    def mismatch(self, announced: int, named: int, prefix: int) -> str:
        """Pages are equal."""
        return PAGES.mismatch(announced, named, prefix)


class Rules:
    """See ``kv_core.protocol.handshake.LayoutRules``."""

    def __init__(self, destinations: int = 1) -> None:
        self._destinations = destinations

    def read(self, wire: dict[str, Any], fields: Fields) -> Items:
        """The layout, or ``MessageError``."""
        if not all(isinstance(size, int) and size >= 0 for size in wire.values()):
            raise MessageError("sizes must be non-negative numbers")
        return Items(dict(wire))

    def differences(self, remote: PeerLayout, mine: Fields, theirs: Fields) -> list[Difference]:
        """What the fields say."""
        return differences(mine, theirs)

    def missing(self, sources: list[PeerLayout]) -> list[Difference]:
        """Nothing ever."""
        return []

    def sources(self, sizes: tuple[int, int, int, int], dp_rank: int, page_size: int) -> SourceRanks:
        """All ranks of the prefill instance."""
        if not 0 <= dp_rank < sizes[3]:
            raise ValueError(f"prefill_dp_rank {dp_rank} must lie in 0..{sizes[3] - 1}")
        return SourceRanks({(tp, 0, 0, dp_rank): self._destinations for tp in range(sizes[0])})

    def coverage(self, pages: int) -> Coverage:
        """The real one."""
        return Coverage(pages, LAYERS)
