"""Index per chunk: what one submission moves, in index form and, on demand, as flat coalesced copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from kv_core.contract.memory import AUX_POOL, KV_POOL
from kv_core.contract.transport import U64, CopyList, PoolPlan, PoolSlice, TransferBatch, TransferPlan
from kv_core.layout.runs import expand, joined, local_view, remote_view

LARGEST = 2**64 - 1


class Batch(TransferBatch):
    """Slices of a plan's pools. Immutable; nothing is worked out before it is asked for. Any thread.

    ``slices``: those without items or lanes are left out. Arrays are kept, not copied: do not change them afterwards.
    """

    __slots__ = ("_descriptors", "_nbytes", "_slices")

    def __init__(self, slices: Iterable[PoolSlice]) -> None:
        self._slices = tuple(part for part in slices if part.local_items.size and part.lanes.size)
        self._nbytes: int | None = None
        self._descriptors: int | None = None

    @property
    def slices(self) -> tuple[PoolSlice, ...]:
        """The index form."""
        return self._slices

    @property
    def nbytes(self) -> int:
        """Bytes that the batch moves."""
        if self._nbytes is None:
            self._nbytes = sum(int(_lane_bytes(part).sum()) * part.local_items.size for part in self._slices)
        return self._nbytes

    @property
    def num_descriptors(self) -> int:
        """Number of copies before merging: items x repeats x lanes."""
        if self._descriptors is None:
            self._descriptors = sum(int(_lane_copies(part).sum()) * part.local_items.size for part in self._slices)
        return self._descriptors

    def copies(self) -> CopyList:
        """The flat form: slices in order, each lane by lane, each lane item by item, and neighbours merged where they
        touch on both sides. Computed at each call; takes 40 bytes per copy.
        """
        blocks = [b for part in self._slices for b in expand(part, (local_view(part), remote_view(part)))]
        return CopyList(
            joined([block.sides[0][0] for block in blocks]),
            joined([block.sides[0][1] for block in blocks]),
            joined([block.sides[1][0] for block in blocks]),
            joined([block.sides[1][1] for block in blocks]),
            joined([block.length for block in blocks]),
        )

    def split(self, max_descriptors: int, max_bytes: int) -> Iterator[Batch]:
        """The same copies in batches of at most ``max_descriptors`` copies (before merging) and ``max_bytes`` bytes.

        Cut between items; where one item alone is too much, between lanes; a lane's piece of one item is never cut,
        whatever it takes. Only slices are made: no array is as long as the number of copies.
        """
        if max_descriptors < 1 or max_bytes < 1:
            raise ValueError(f"a batch needs room: max_descriptors is {max_descriptors}, max_bytes {max_bytes}")
        if self.num_descriptors <= max_descriptors and self.nbytes <= max_bytes:
            if self._slices:
                yield self
            return
        taken: list[PoolSlice] = []
        copies, nbytes = max_descriptors, max_bytes  # what still fits
        for part in self._narrow_slices(max_descriptors, max_bytes):
            item_copies, item_bytes = int(_lane_copies(part).sum()), int(_lane_bytes(part).sum())
            at, end = 0, part.local_items.size
            while at < end:
                fits = min(end - at, copies // item_copies, nbytes // item_bytes)
                if fits < 1 and taken:
                    yield Batch(taken)
                    taken, copies, nbytes = [], max_descriptors, max_bytes
                    continue
                fits = max(fits, 1)
                taken.append(
                    PoolSlice(
                        part.plan, part.lanes, part.local_items[at : at + fits], part.remote_items[at : at + fits]
                    )
                )
                at, copies, nbytes = at + fits, max(copies - fits * item_copies, 0), max(nbytes - fits * item_bytes, 0)
        if taken:
            yield Batch(taken)

    def _narrow_slices(self, max_descriptors: int, max_bytes: int) -> Iterator[PoolSlice]:
        """The slices, cut between lanes where one item exceeds the limits."""
        for part in self._slices:
            copies, nbytes = _lane_copies(part).cumsum(), _lane_bytes(part).cumsum()
            first = 0
            while first < part.lanes.size:
                before = (int(copies[first - 1]), int(nbytes[first - 1])) if first else (0, 0)
                stop = max(
                    min(_position(copies, before[0] + max_descriptors), _position(nbytes, before[1] + max_bytes)),
                    first + 1,
                )
                yield part if stop - first == part.lanes.size else part._replace(lanes=part.lanes[first:stop])
                first = stop


def _lane_copies(part: PoolSlice) -> U64:
    return part.plan.inner_count[part.lanes]


def _lane_bytes(part: PoolSlice) -> U64:
    return part.plan.length[part.lanes] * part.plan.inner_count[part.lanes]


def _position(sums: U64, limit: int) -> int:
    """How many lanes stay within ``limit``. Compared as uint64: a Python int would make NumPy compare floats."""
    return int(np.searchsorted(sums, np.uint64(min(limit, LARGEST)), side="right"))


def pool_plan(plan: TransferPlan, pool: str) -> PoolPlan:
    """The plan of one pool. Raises ``ValueError`` if there is none."""
    for candidate in plan.pools:
        if candidate.pool == pool:
            return candidate
    raise ValueError(f"no pool {pool!r} in this plan, only {[candidate.pool for candidate in plan.pools]}")


def slice_for(
    plan: TransferPlan, pool: str, local_items: U64, remote_items: U64, layers: range | None = None
) -> PoolSlice:
    """These items of a pool (uint64, equal length, already checked against both sides' ``num_items``) on the lanes of
    these layers: None is all lanes; a range those whose layer it contains, which may be none.

    Raises ``ValueError`` for unequal lengths, another dtype or shape, or a pool that the plan does not have.
    """
    found = pool_plan(plan, pool)
    for side, items in (("local", local_items), ("remote", remote_items)):
        if items.dtype != np.uint64 or items.ndim != 1:
            raise ValueError(
                f"pool {pool!r}: {side} items must be a uint64 array of one dimension, got {items.dtype} of shape "
                f"{items.shape}; check_indices makes one"
            )
    if local_items.size != remote_items.size:
        raise ValueError(f"pool {pool!r}: {local_items.size} local items can't go with {remote_items.size} remote ones")
    return PoolSlice(found, _lanes(found, layers), local_items, remote_items)


def _lanes(plan: PoolPlan, layers: range | None) -> npt.NDArray[np.intp]:
    if layers is None:
        return np.arange(plan.num_lanes)
    if layers.step != 1:
        raise ValueError(f"layers must be a range of step 1, got {layers}")
    return np.flatnonzero((plan.layer >= layers.start) & (plan.layer < layers.stop))


def make_batch(
    plan: TransferPlan,
    kv: tuple[U64, U64, range | None] | None = None,
    states: Mapping[str, tuple[U64, U64]] | None = None,
    aux: tuple[int, int] | None = None,
) -> Batch:
    """One batch of KV items (local, remote, layers), state items by pool and an auxiliary row (local, remote).

    Slices come in the plan's order of pools whatever the order of ``states``, so that both ends of a chunk make the
    same batch. Raises ``ValueError`` as ``slice_for`` does.
    """
    parts: list[PoolSlice] = []
    if kv is not None:
        parts.append(slice_for(plan, KV_POOL, *kv))
    if states:
        order = {pool.pool: position for position, pool in enumerate(plan.pools)}
        names = sorted(states, key=lambda name: order.get(name, -1))
        parts += [slice_for(plan, name, *states[name]) for name in names]
    if aux is not None:
        local, remote = aux
        parts.append(slice_for(plan, AUX_POOL, np.array([local], np.uint64), np.array([remote], np.uint64)))
    return Batch(parts)
