"""Backends that copy the wrong bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from conformance.tests.mutants.base import mutant
from kv_core.contract.memory import AUX_POOL, KV_POOL
from kv_core.contract.transport import CopyList, PoolSlice, Prepared, TransferBatch
from kv_core.layout import Batch
from kv_fake import FakeTransport
from kv_fake.outbound import FakeTransfer

U64 = npt.NDArray[np.uint64]


class Changed(TransferBatch):
    """A batch with other copies."""

    def __init__(self, batch: TransferBatch, copies: CopyList) -> None:
        self._batch = batch
        self._copies = copies

    @property
    def slices(self) -> tuple[PoolSlice, ...]:
        return self._batch.slices

    @property
    def nbytes(self) -> int:
        return self._batch.nbytes

    @property
    def num_descriptors(self) -> int:
        return self._batch.num_descriptors

    def copies(self) -> CopyList:
        return self._copies


class Copying(FakeTransport):
    """kv-fake with other copies than it is asked for."""

    def frame(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        return super().frame(prepared, self.change(batch))

    def change(self, batch: TransferBatch) -> TransferBatch:
        """The batch that is really sent."""
        raise NotImplementedError


def resliced(batch: TransferBatch, change: Callable[[PoolSlice], PoolSlice], pool: str | None = None) -> Batch:
    """The batch with each slice (of this pool) changed."""
    return Batch(change(part) if pool in (None, part.plan.pool) else part for part in batch.slices)


def relengthened(batch: TransferBatch, change: Callable[[U64], U64]) -> Changed:
    """The batch with other lengths; copies of length 0 are left out."""
    copies = batch.copies()
    length = change(copies.length)
    kept = length > 0
    return Changed(batch, CopyList(*(column[kept] for column in copies._replace(length=length))))


@mutant("lost_last_page", "KV-XFER-1")
class LostLastPage(Copying):
    """All pages of a batch arrive: here the last one of several does not."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        def without_last(part: PoolSlice) -> PoolSlice:
            if part.local_items.size < 2:
                return part
            return part._replace(local_items=part.local_items[:-1], remote_items=part.remote_items[:-1])

        return resliced(batch, without_last, KV_POOL)


@mutant("one_byte_short", "KV-XFER-1")
class OneByteShort(Copying):
    """Every byte of an item arrives: here the last byte of each batch does not."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        def shorten(length: U64) -> U64:
            length = length.copy()
            length[-1:] -= np.uint64(1)
            return length

        return relengthened(batch, shorten)


@mutant("one_byte_beyond", "KV-XFER-1")
class OneByteBeyond(Copying):
    """Nothing but the named items is written: here the byte behind the last one is, too, where the region goes on."""

    def frame(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        copies, plan = batch.copies(), prepared.plan
        room = np.full(len(copies.length), True)
        for regions, number, offset in (
            (plan.local_regions, copies.local_region, copies.local_offset),
            (plan.remote_regions, copies.remote_region, copies.remote_offset),
        ):
            nbytes = np.array([region.nbytes for region in regions], np.uint64)
            room &= offset + copies.length < nbytes[number.astype(np.intp)]
        length = copies.length.copy()
        length[np.flatnonzero(room)[-1:]] += np.uint64(1)
        return FakeTransport.frame(self, prepared, Changed(batch, copies._replace(length=length)))


@mutant("swapped_items", "KV-XFER-1")
class SwappedItems(Copying):
    """Local items are read and remote ones are written: here the two lists change places."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        return resliced(batch, lambda part: part._replace(local_items=part.remote_items, remote_items=part.local_items))


@mutant("sorted_items", "KV-XFER-2")
class SortedItems(Copying):
    """Entry n of one list goes with entry n of the other: here each list is sorted by itself, so that runs get longer."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        def sort(part: PoolSlice) -> PoolSlice:
            return part._replace(local_items=np.sort(part.local_items), remote_items=np.sort(part.remote_items))

        return resliced(batch, sort)


@mutant("ignores_layers", "KV-XFER-4")
class IgnoresLayers(Copying):
    """A batch of some layers touches no others: here it moves all of them."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        return resliced(batch, lambda part: part._replace(lanes=np.arange(part.plan.num_lanes)), KV_POOL)


@mutant("drops_unaligned_tail", "KV-XFER-5")
class DropsUnalignedTail(Copying):
    """Items of any length arrive whole: here only whole words of 8 bytes do."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        return relengthened(batch, lambda length: length - length % np.uint64(8))


@mutant("skips_merged_runs", "KV-XFER-2")
class SkipsMergedRuns(Copying):
    """A run of neighbouring items arrives whole: here only its first item does."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        longest = max((int(part.plan.length[part.lanes].max()) for part in batch.slices), default=0)
        return relengthened(batch, lambda length: np.minimum(length, np.uint64(longest)))


@mutant("offsets_of_32_bits", "KV-XFER-10")
class OffsetsOf32Bits(Copying):
    """Offsets have 64 bits: here the remote ones lose the upper half."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        copies = batch.copies()
        return Changed(batch, copies._replace(remote_offset=copies.remote_offset & np.uint64(0xFFFFFFFF)))


@mutant("caches_by_number_of_items", "KV-XFER-2")
class CachesByNumberOfItems(Copying):
    """Each batch is worked out from its own items: here one of as many items as an earlier one gets that one's copies."""

    known: dict[tuple[int, int], CopyList]

    def change(self, batch: TransferBatch) -> TransferBatch:
        self.known = getattr(self, "known", {})
        key = (batch.num_descriptors, batch.nbytes)
        return Changed(batch, self.known.setdefault(key, batch.copies()))


@mutant("wrong_state_pool", "KV-XFER-17")
class WrongStatePool(Copying):
    """Each state pool has items of its own: here all are moved with those of the first."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        states = [part for part in batch.slices if part.plan.pool not in (KV_POOL, AUX_POOL)]
        if len(states) < 2:
            return batch
        first = states[0]
        return resliced(
            batch,
            lambda part: (
                part
                if part.plan.pool in (KV_POOL, AUX_POOL)
                else part._replace(local_items=first.local_items, remote_items=first.remote_items)
            ),
        )


@mutant("state_left_out", "KV-XFER-6")
class StateLeftOut(Copying):
    """KV, state and auxiliary items of a batch all arrive: here state items that go with KV pages do not."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        if not any(part.plan.pool == KV_POOL for part in batch.slices):
            return batch
        return Batch(part for part in batch.slices if part.plan.pool in (KV_POOL, AUX_POOL))


@mutant("aux_left_out", "KV-XFER-16")
class AuxLeftOut(Copying):
    """KV, state and auxiliary items of a batch all arrive: here an auxiliary row that goes with KV pages does not."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        return Batch(part for part in batch.slices if part.plan.pool != AUX_POOL or len(batch.slices) == 1)


@mutant("empty_batch_is_never_done", "KV-XFER-3")
class EmptyBatchIsNeverDone(FakeTransport):
    """An empty batch is done at once: here it is pending for ever."""

    def post(self, transfer: FakeTransfer) -> None:
        if transfer.pieces is not None:
            super().post(transfer)


@mutant("moves_to_the_newest_peer", "KV-PEER-5")
class MovesToTheNewestPeer(FakeTransport):
    """A batch goes to the peer that it was prepared for: here to the one that was added last."""

    def post(self, transfer: FakeTransfer) -> None:
        newest = next(reversed(self._peers), transfer.peer)
        if transfer.peer in self._peers and newest.name != transfer.peer.name:
            transfer.peer = newest
        super().post(transfer)


@mutant("a_thousand_copies_at_most", "KV-XFER-8")
class AThousandCopiesAtMost(Copying):
    """A batch may have thousands of copies: here those after the first thousand are left out."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        return Changed(batch, CopyList(*(column[:1000] for column in batch.copies())))


@mutant("four_thousand_copies_at_most", "KV-XFER-23")
class FourThousandCopiesAtMost(Copying):
    """A batch may have as many copies as core asks for: here those after the first four thousand are left out."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        return Changed(batch, CopyList(*(column[:4000] for column in batch.copies())))


@mutant("lengths_of_26_bits", "KV-XFER-9")
class LengthsOf26Bits(Copying):
    """A copy may have any length: here at most 64 MiB of it arrive."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        return relengthened(batch, lambda length: np.minimum(length, np.uint64(1 << 26)))
