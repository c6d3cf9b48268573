"""Digests: xxh3-64 over a chunk's bytes in plan order, at the source before they move and at the destination after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from kv_core.contract.memory import AUX_POOL, KV_POOL
from kv_core.contract.transport import U64, PoolSlice, TransferBatch, TransferPlan
from kv_core.layout import Batch, Pages, Placement, page_batch
from kv_core.protocol.chunks import TransferKVChunk
from kv_core.protocol.messages import ChunkDigest
from kv_core.protocol.rooms import Offer
from kv_core.runtime.transfer.memory import Bytes, HostMemory

SCRATCH_BYTES = 1 << 18
"""Small items are gathered into a buffer of this size, which stays in the processor's cache, and hashed from there."""
DIRECT_BYTES = 1 << 13
"""From this length on an item is hashed where it is: a call for each costs less than a copy (measured: 23 GB/s against
15 at 16 KiB, 9 against 12 at 2 KiB).
"""


class Hasher:
    """Hashes batches over host memory. Owner thread only: the scratch buffer is used again and again."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._scratch: Bytes = np.empty(0, np.uint8)

    def digest(self, batch: TransferBatch) -> int:
        """xxh3-64 over the *local* bytes of a batch, in the order of ``layout.segments``.

        Raises ``ValueError`` for memory that is not the host's, or an item outside of its region.
        """
        if not self._scratch.size:
            self._scratch = np.empty(SCRATCH_BYTES, np.uint8)
        stream = xxhash.xxh3_64()
        for part in batch.slices:
            items = part.local_items.astype(np.intp)
            first, last = int(items.min()), int(items.max())
            run = last - first + 1 == items.size and bool((items[1:] - items[:-1] == 1).all())
            for lane in part.lanes.tolist():
                rows = self._rows(part, lane, last)
                if run:
                    stream.update(np.ascontiguousarray(rows[first : last + 1]).data)
                else:
                    self._gather(stream.update, rows, items)
        return stream.intdigest()

    def _rows(self, part: PoolSlice, lane: int, last: int) -> npt.NDArray[np.uint8]:
        """The lane's pieces of items 0 to ``last``: uint8 of shape (items, bytes), or (items, repeats, bytes)."""
        plan = part.plan
        view = self._memory.view(int(plan.local_region[lane]))
        offset, stride, length = int(plan.local_offset[lane]), int(plan.local_stride[lane]), int(plan.length[lane])
        repeats, inner = int(plan.inner_count[lane]), int(plan.local_inner_stride[lane])
        if repeats == 1 or inner == length:
            length, repeats = length * repeats, 1
        end = offset + last * stride + (repeats - 1) * inner + length
        if end > view.size:
            raise ValueError(f"pool {plan.pool!r}: item {last} ends at byte {end} of a region of {view.size} bytes")
        if repeats == 1 and stride == length:
            return view[offset:end].reshape(last + 1, length)
        shape, strides = ((last + 1, length), (stride, 1))
        if repeats > 1:
            shape, strides = ((last + 1, repeats, length), (stride, inner, 1))  # type: ignore[assignment]
        return np.lib.stride_tricks.as_strided(view[offset:end], shape, strides, writeable=False)

    def _gather(self, update: Callable[[Any], None], rows: npt.NDArray[np.uint8], items: npt.NDArray[np.intp]) -> None:
        length = rows[0].size
        if length >= DIRECT_BYTES:
            for item in items.tolist():
                update(np.ascontiguousarray(rows[item]).data)
            return
        block = SCRATCH_BYTES // length
        for at in range(0, items.size, block):
            some = items[at : at + block]
            if rows.flags.c_contiguous:
                out = self._scratch[: some.size * length]
                # The indices are within bounds (see _rows); "clip" spares NumPy a copy that "raise" would make.
                np.take(rows, some, axis=0, out=out.reshape(some.size, length), mode="clip")
                update(out.data)
            else:  # take() would copy the whole pool first
                update(np.ascontiguousarray(rows[some]).data)


PoolPages = dict[str, tuple[Pages, Pages]]
"""By pool: pages and items of this side, and those of the other."""


def chunk_pages(chunk: TransferKVChunk, placement: Placement) -> PoolPages:
    """What a chunk moves, in the positions of the prompt."""
    if chunk.pulled:
        theirs, mine = placement.chunk(chunk.start, chunk.remote, chunk.local, chunk.prefix)
        pages = {KV_POOL: (mine, theirs)}
    else:
        pages = {KV_POOL: placement.chunk(chunk.start, chunk.local, chunk.remote, chunk.prefix)}
    pages |= {pool: (Pages(local), Pages(remote)) for pool, (_, local, remote) in chunk.states.items()}
    if chunk.aux is not None:
        pages[AUX_POOL] = _row(chunk.aux[0]), _row(chunk.aux[1])
    return pages


def without_aux(pages: PoolPages) -> PoolPages:
    """The same without the auxiliary row: it goes by message."""
    return {pool: pair for pool, pair in pages.items() if pool != AUX_POOL}


def _row(index: int) -> Pages:
    return Pages(np.array([index], np.uint64))


def describe_chunk(chunk: TransferKVChunk, plan: TransferPlan, digest: int) -> ChunkDigest:
    """What a chunk's digest covers, as the other side needs it to find the same bytes."""
    first, stop = _layers(chunk.layers, plan)
    states = {pool: (start, int(local.size)) for pool, (start, local, _) in chunk.states.items()}
    return ChunkDigest(chunk.start, int(chunk.local.size), first, stop, states, chunk.aux is not None, digest)


def _layers(layers: range | None, plan: TransferPlan) -> tuple[int, int]:
    if layers is not None:
        return layers.start, layers.stop
    numbers = [pool.layer for pool in plan.pools if pool.pool == KV_POOL]
    return (int(numbers[0].min()), int(numbers[0].max()) + 1) if numbers else (0, 0)


def covered(told: ChunkDigest, offer: Offer, plan: TransferPlan, placement: Placement, max_pages: int) -> Batch:
    """The batch that a peer's digest is about, seen from here: ``plan``'s local side is this process.

    Raises ``ValueError`` for pages, state items or an auxiliary row that this room did not offer.
    """
    if placement.prefill == placement.decode:
        _part(offer.kv, told.start, told.count, "pages")
    if told.start + told.count > max_pages:
        raise ValueError(f"pages {told.start} to {told.start + told.count}, TransferConfig.max_indices is {max_pages}")
    # Which pages of its own prefill read is its business: their positions say which of ours they went to.
    theirs, mine = placement.chunk(told.start, np.zeros(told.count, np.uint64), offer.kv, offer.decode_prefix_len)
    pages: PoolPages = {KV_POOL: (mine, theirs)}
    for pool, (start, count) in told.states.items():
        if pool not in offer.states:
            raise ValueError(f"state pool {pool!r}, which the room did not offer")
        items = _part(offer.states[pool], start, count, f"items of state {pool!r}")
        pages[pool] = (Pages(items), Pages(items))
    if told.aux:
        if offer.aux_index is None:
            raise ValueError("an auxiliary row, which the room did not offer")
        pages[AUX_POOL] = _row(offer.aux_index), _row(offer.aux_index)
    return page_batch(plan, pages, range(told.first_layer, told.stop_layer))


def _part(items: U64, start: int, count: int, what: str) -> U64:
    if start < 0 or count < 0 or start + count > items.size:
        raise ValueError(f"{what} {start} to {start + count}, but the room offered {items.size}")
    return items[start : start + count]


def name_of(told: ChunkDigest) -> str:
    """A digest's chunk, for a sentence."""
    parts = [f"pages {told.start} to {told.start + told.count} on layers {told.first_layer} to {told.stop_layer - 1}"]
    parts += [f"{count} items of state {pool!r} from {start}" for pool, (start, count) in told.states.items()]
    return " and ".join(parts + (["the auxiliary row"] if told.aux else []))
