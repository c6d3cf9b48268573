"""What is known of a peer, and what this side's regions and its have to do with each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from kv_core import TransportError
from kv_core.contract.transport import CopyList, PeerKey, Prepared, TransferPlan
from kv_mori.transfer import MoriTransfer


class MoriPeer:
    """What is known of a peer. ``weight``: work requests in flight to it; ``waiting``: transfers with parts held back."""

    def __init__(self, engine: Any, memory: dict[int, Any]) -> None:
        self.engine = engine
        self.memory = memory
        self.weight = 0
        self.waiting: deque[MoriTransfer] = deque()
        self.failed = False


class MoriPrepared(Prepared):
    """The regions' descriptors and sizes, in the plan's order, and the sessions that keep what MORI set up for them."""

    def __init__(self, peer: PeerKey, plan: TransferPlan, local: list[Any], remote: list[Any]) -> None:
        super().__init__(peer, plan)
        self.regions = (local, remote)
        self.sizes = tuple(np.array([desc.size if desc else 0 for desc in side], np.uint64) for side in self.regions)
        self.sessions: list[Any] = []

    def pairs(self) -> Iterable[tuple[int, int]]:
        """Positions of regions that have to do with each other."""
        return sorted({
            pair for pool in self.plan.pools
            for pair in zip(pool.local_region.tolist(), pool.remote_region.tolist(), strict=True)
        })  # fmt: skip

    def check(self, copies: CopyList) -> None:
        """Raise for the first copy that is not inside both regions."""
        sides = (
            ("reads", copies.local_region, copies.local_offset),
            ("writes", copies.remote_region, copies.remote_offset),
        )
        for sizes, (verb, region, offset) in zip(self.sizes, sides, strict=True):
            size = sizes[region.astype(np.intp)]
            wrong = np.flatnonzero((copies.length > size) | (offset > size - np.minimum(copies.length, size)))
            if wrong.size:
                at = int(wrong[0])
                raise TransportError(
                    f"copy {at} of {len(size)} {verb} {copies.length[at]} bytes at offset {offset[at]} of region "
                    f"{region[at]}, which has {size[at]} bytes registered",
                    quiescent=True,
                )
