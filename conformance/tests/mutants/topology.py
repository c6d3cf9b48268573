"""Backends that get plans between unequal topologies wrong."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from time import sleep
from typing import Any

import numpy as np

from conformance.tests.mutants.base import mutant
from conformance.tests.mutants.copying import Changed, Copying, relengthened, resliced
from conformance.tests.mutants.sending import Sending
from kv_core import KVPoll, KVTransferMetric, Region, TransportError
from kv_core.contract.memory import AUX_POOL, KV_POOL
from kv_core.contract.transport import (
    CopyList,
    PeerKey,
    PoolPlan,
    PoolSlice,
    Prepared,
    TransferBatch,
    TransferPlan,
    TransportContext,
)
from kv_core.layout import Batch
from kv_core.runtime import CommonKVReceiver, CommonKVSender
from kv_fake import FakeTransport
from kv_fake.memory import U64
from kv_fake.outbound import FakeTransfer
from kv_fake.transport import FakePrepared

LINE = 64
"""Bytes of a cache line."""
PAUSE_S = 0.05


class Planning(Copying):
    """kv-fake that reads other lanes out of a plan than there are."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        return resliced(batch, lambda part: part._replace(plan=self.read(part.plan)))

    def read(self, plan: PoolPlan) -> PoolPlan:
        """What it takes the lanes of a pool for."""
        raise NotImplementedError


# -- repeats, strides, offsets -----------------------------------------------------------------------------------------


@mutant("repeats_are_ignored", "KV-TOPO-1")
class RepeatsAreIgnored(Planning):
    """A lane's piece repeats ``inner_count`` times in an item: here the first one is all."""

    def read(self, plan: PoolPlan) -> PoolPlan:
        return replace(plan, inner_count=np.ones_like(plan.inner_count))


@mutant("repeats_lie_close", "KV-TOPO-1")
class RepeatsLieClose(Planning):
    """Repeats have a stride of their own on each side: here they are written one behind the other."""

    def read(self, plan: PoolPlan) -> PoolPlan:
        return replace(plan, remote_inner_stride=plan.length)


@mutant("local_stride_for_both", "KV-TOPO-1")
class LocalStrideForBoth(Planning):
    """Items have a stride of their own on each side: here the local one is taken for both."""

    def read(self, plan: PoolPlan) -> PoolPlan:
        return replace(plan, remote_stride=plan.local_stride)


@mutant("local_offset_for_both", "KV-TOPO-1")
class LocalOffsetForBoth(Planning):
    """A lane has an offset of its own on each side: here the local one is taken for both."""

    def read(self, plan: PoolPlan) -> PoolPlan:
        return replace(plan, remote_offset=plan.local_offset)


# -- pages of other sizes ----------------------------------------------------------------------------------------------


@mutant("items_are_held_against_pages", "KV-TOPO-2")
class ItemsAreHeldAgainstPages(Copying):
    """A plan's items may be parts of pages: here those beyond the number of pages are taken for mistakes, and left out."""

    def frame(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        plan = prepared.plan

        def within(part: PoolSlice) -> PoolSlice:
            lanes = part.plan
            here = _pages(plan.local_regions, lanes.local_region, lanes.local_stride, lanes.local_ratio)
            there = _pages(plan.remote_regions, lanes.remote_region, lanes.remote_stride, lanes.remote_ratio)
            kept = (part.local_items < here) & (part.remote_items < there)
            return part._replace(local_items=part.local_items[kept], remote_items=part.remote_items[kept])

        return FakeTransport.frame(
            self, prepared, Batch(part if part.plan.phases > 1 else within(part) for part in batch.slices)
        )


def _pages(regions: Sequence[Region], number: U64, stride: U64, ratio: int) -> int:
    """How many whole pages the first lane's buffer has, if an item is a ``ratio``-th of one."""
    return regions[int(number[0])].nbytes // (int(stride[0]) * ratio)


@mutant("strides_of_whole_pages", "KV-TOPO-2")
class StridesOfWholePages(Planning):
    """A lane's stride is an item's: here it is taken for that of a smaller page, and multiplied."""

    def read(self, plan: PoolPlan) -> PoolPlan:
        if plan.phases > 1:
            return plan
        here, there = np.uint64(plan.local_ratio), np.uint64(plan.remote_ratio)
        return replace(plan, local_stride=plan.local_stride * here, remote_stride=plan.remote_stride * there)


# -- slices ------------------------------------------------------------------------------------------------------------


@mutant("one_slice_for_a_pool", "KV-TOPO-3")
class OneSliceForAPool(Copying):
    """A batch may have several slices of one pool: here the last one takes the place of the others."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        return Batch({part.plan.pool: part for part in batch.slices}.values())


@mutant("first_slice_of_a_pool", "KV-TOPO-3")
class FirstSliceOfAPool(Copying):
    """A batch may have several slices of one pool: here only the first one is sent."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        found: dict[str, PoolSlice] = {}
        for part in batch.slices:
            found.setdefault(part.plan.pool, part)
        return Batch(found.values())


@mutant("slices_are_joined", "KV-TOPO-3")
class SlicesAreJoined(Copying):
    """Each slice has lanes of its own: here the items of all slices of a pool are moved on the lanes of all of them."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        by_pool: dict[str, list[PoolSlice]] = {}
        for part in batch.slices:
            by_pool.setdefault(part.plan.pool, []).append(part)
        return Batch(
            PoolSlice(
                parts[0].plan,
                np.unique(np.concatenate([part.lanes for part in parts])),
                np.concatenate([part.local_items for part in parts]),
                np.concatenate([part.remote_items for part in parts]),
            )
            for parts in by_pool.values()
        )


@mutant("lanes_from_the_first_on", "KV-TOPO-3")
class LanesFromTheFirstOn(Copying):
    """Lanes of a slice are numbers: here only their count is looked at, and the first ones are taken."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        return resliced(batch, lambda part: part._replace(lanes=np.arange(part.lanes.size)))


# -- buffers -----------------------------------------------------------------------------------------------------------


@mutant("local_numbers_for_both", "KV-TOPO-4")
class LocalNumbersForBoth(Planning):
    """A buffer may have another number on each side: here the local one is taken for both."""

    def read(self, plan: PoolPlan) -> PoolPlan:
        return replace(plan, remote_region=plan.local_region)


@mutant("regions_by_layer", "KV-TOPO-4")
class RegionsByLayer(Planning):
    """Remote regions are numbers of the peer's buffers: here that of a KV buffer is taken to be its layer's."""

    def read(self, plan: PoolPlan) -> PoolPlan:
        one_each = np.unique(plan.layer).size == plan.layer.size
        if plan.pool != KV_POOL or not one_each:
            return plan
        return replace(plan, remote_region=np.maximum(plan.layer, 0).astype(np.uint64))


# -- counts ------------------------------------------------------------------------------------------------------------


@mutant("counts_without_repeats", "KV-TOPO-5")
class CountsWithoutRepeats(Copying):
    """A batch has items times lanes times repeats of copies: here there is room for items times lanes of them."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        room = sum(part.local_items.size * part.lanes.size for part in batch.slices)
        return Changed(batch, CopyList(*(column[:room] for column in batch.copies())))


@mutant("tiny_copies_are_dropped", "KV-TOPO-5")
class TinyCopiesAreDropped(Copying):
    """A copy may have any length: here those of one or two bytes are left out of a batch of more than a thousand."""

    def change(self, batch: TransferBatch) -> TransferBatch:
        if batch.num_descriptors < 1000:
            return batch
        return relengthened(batch, lambda length: np.where(length < 3, np.uint64(0), length))


# -- what a plan leaves out --------------------------------------------------------------------------------------------


class Preparing(FakeTransport):
    """kv-fake that has its doubts about plans."""

    def prepare(self, peer: PeerKey, plan: TransferPlan) -> FakePrepared:
        problem = self.doubt(plan)
        if problem:
            raise TransportError(problem, quiescent=True)
        return super().prepare(peer, plan)

    def doubt(self, plan: TransferPlan) -> str:
        """Why it refuses a plan."""
        raise NotImplementedError


@mutant("needs_all_of_its_buffers", "KV-TOPO-6")
class NeedsAllOfItsBuffers(Preparing):
    """A plan may leave out layers and pools: here one in which some of this side's KV buffers don't occur is refused."""

    def doubt(self, plan: TransferPlan) -> str:
        used = {number for pool in plan.pools for number in pool.local_region.tolist()}
        idle = [one.index for one in plan.local_regions if one.pool == KV_POOL and one.index not in used]
        return f"KV buffers {idle} occur in no lane" if idle else ""


@mutant("needs_the_last_pool", "KV-TOPO-6")
class NeedsTheLastPool(Preparing):
    """A plan may leave out pools: here one without the auxiliary pool is refused where both sides have it."""

    def doubt(self, plan: TransferPlan) -> str:
        sides = [{region.pool for region in regions} for regions in (plan.local_regions, plan.remote_regions)]
        missing = all(AUX_POOL in side for side in sides) and AUX_POOL not in {pool.pool for pool in plan.pools}
        return "the plan has no auxiliary pool" if missing else ""


@mutant("state_items_are_whole", "KV-TOPO-7")
class StateItemsAreWhole(Planning):
    """Blocks of a state item are cut each by itself: here as many bytes are copied as both items have, from the beginning."""

    def read(self, plan: PoolPlan) -> PoolPlan:
        if plan.pool in (KV_POOL, AUX_POOL):
            return plan
        none, one = np.zeros_like(plan.length), np.ones_like(plan.length)
        return replace(
            plan, local_offset=none, remote_offset=none, inner_count=one,
            length=np.minimum(plan.local_stride, plan.remote_stride),
        )  # fmt: skip


# -- neighbours --------------------------------------------------------------------------------------------------------


@mutant("writes_back_whole_lines", "KV-TOPO-8")
class WritesBackWholeLines(FakeTransport):
    """Nothing but the named bytes is written: here whole lines of 64 bytes are read, changed and written back. Nobody sees it as
    long as nobody else writes there at the same time.
    """

    def __init__(self, context: TransportContext) -> None:
        super().__init__(context)
        nic: Any = self._nic
        land, memory = nic._land, self._memory

        def by_lines(inbound: Any, region: U64, offset: U64, length: U64) -> int:
            address, refused = memory.locate(region, offset, length)
            if refused >= 0 or len(nic._inbound) < 2:
                return int(land(inbound, region, offset, length))
            span, neighbours = _lines(address, length, memory._table)
            before = span[neighbours]
            refused = int(land(inbound, region, offset, length))
            sleep(PAUSE_S)
            span[neighbours] = before
            return refused

        nic._land = by_lines


def _lines(address: U64, length: U64, table: tuple[U64, U64]) -> tuple[Any, Any]:
    """All bytes from the first to the last one that is written, as an array, and which of them are neighbours of those that are:
    in the same line and in registered memory.
    """
    ends = address + length
    base = int(address.min()) // LINE * LINE
    size = int(ends.max()) - base
    line, named, known = (np.zeros(size, np.bool_) for _ in range(3))
    for begin, end in zip((address - np.uint64(base)).tolist(), (ends - np.uint64(base)).tolist(), strict=True):
        line[begin // LINE * LINE : -(-end // LINE) * LINE] = True
        named[begin:end] = True
    for begin, nbytes in zip(table[0].tolist(), table[1].tolist(), strict=True):
        known[max(begin - base, 0) : max(begin + nbytes - base, 0)] = True
    span = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(base))
    return span, line & known & ~named


# -- rooms of several ranks --------------------------------------------------------------------------------------------


@mutant("content_with_one_source", "KV-TOPO-9")
class ContentWithOneSource(CommonKVReceiver):
    """A room ends well when all of its sources have sent: here when one has."""

    def poll(self) -> KVPoll:
        state, sources = super().poll(), self._room.sources
        enough = state is KVPoll.Transferring and any(link.done for link in sources)
        return KVPoll.Success if enough else state


@mutant("metric_of_one_source", "KV-TOPO-9")
class MetricOfOneSource(CommonKVReceiver):
    """A receiver's metric counts what all sources sent: here one source's share."""

    def get_transfer_metric(self) -> KVTransferMetric:
        return _divided(super().get_transfer_metric(), len(self._room.sources))


@mutant("plans_by_their_shape", "KV-TOPO-10")
class PlansByTheirShape(Copying):
    """Each peer has a plan of its own: here a plan is worked out once, and taken for all that have as many lanes."""

    known: dict[tuple[str, int], PoolPlan]

    def prepare(self, peer: PeerKey, plan: TransferPlan) -> FakePrepared:
        self.known = getattr(self, "known", {})
        for pool in plan.pools:
            self.known.setdefault((pool.pool, pool.num_lanes), pool)
        return super().prepare(peer, plan)

    def change(self, batch: TransferBatch) -> TransferBatch:
        return resliced(
            batch, lambda part: part._replace(plan=self.known.get((part.plan.pool, part.plan.num_lanes), part.plan))
        )


@mutant("one_destination_is_enough", "KV-TOPO-10")
class OneDestinationIsEnough(CommonKVSender):
    """A sender waits for input when all of its decode ranks have named their pages: here when one has."""

    def poll(self) -> KVPoll:
        state = super().poll()
        named = any(link.pages is not None for link in list(self._room.links.values()))
        return KVPoll.WaitingForInput if state is KVPoll.Bootstrapping and named else state


@mutant("metric_of_one_destination", "KV-TOPO-10")
class MetricOfOneDestination(CommonKVSender):
    """A sender's metric counts what it sent to all of its decode ranks: here one rank's share."""

    def get_transfer_metric(self) -> KVTransferMetric:
        return _divided(super().get_transfer_metric(), len(self._room.links))


def _divided(metric: KVTransferMetric, count: int) -> KVTransferMetric:
    nbytes = metric.transfer_total_bytes
    return replace(metric, transfer_total_bytes=None if nbytes is None else nbytes // max(count, 1))


@mutant("as_many_pages_as_decode", "KV-TOPO-11")
class AsManyPagesAsDecode(CommonKVSender):
    """Each side counts in its own pages: here prefill takes the number that decode named for its own."""

    def init(self, num_kv_indices: int, aux_index: int | None = None) -> None:
        named = [link.pages.size for link in self._room.links.values() if link.pages is not None]
        super().init(int(named[0]) if named else num_kv_indices, aux_index)


@mutant("prefix_in_decodes_pages", "KV-TOPO-11")
class PrefixInDecodesPages(CommonKVSender):
    """A sender's decode_prefix_len is in prefill's pages: here as decode named it."""

    @property
    def decode_prefix_len(self) -> int:
        return max((link.prefix_len for link in self._room.links.values()), default=0)


@mutant("layers_of_the_stage", "KV-TOPO-12")
class LayersOfTheStage(Sending):
    """A range of layers counts the model's: here it counts from the first layer of the stage."""

    def hand_over(self, kv: Any, states: Any, layers: Any, ready: Any) -> None:
        if layers is not None:
            machine: Any = self._runner.machine
            first = int(machine.rules.layout.pools[0].layer.min())
            layers = range(layers.start + first, layers.stop + first)
        super().hand_over(kv, states, layers, ready)


@mutant("the_word_of_one_source", "KV-TOPO-13")
class TheWordOfOneSource(CommonKVReceiver):
    """Decode's pages are free when all sources are quiescent: here when one is."""

    def is_release_safe(self) -> bool:
        room = self._room
        return super().is_release_safe() or (
            room.poll is KVPoll.Failed and len(room.sources) > 1 and not all(link.busy for link in room.sources)
        )


@mutant("nothing_sent_is_a_failure", "KV-TOPO-14")
class NothingSentIsAFailure(CommonKVSender):
    """A rank that serves nobody ends as the room does: here it has failed, for it has sent nothing."""

    def poll(self) -> KVPoll:
        state, room = super().poll(), self._room
        nothing = state is KVPoll.Success and room.nbytes == 0 and bool(room.expected)
        return KVPoll.Failed if nothing else state


@mutant("memory_of_core_is_not_registered", "KV-TOPO-10")
class MemoryOfCoreIsNotRegistered(FakeTransport):
    """With ``staging_below`` core registers memory of its own when it meets a peer: here only what comes before the first
    descriptor is registered.
    """

    def __init__(self, context: TransportContext) -> None:
        super().__init__(context)
        self._told = False

    def local_descriptor(self) -> bytes:
        self._told = True
        return super().local_descriptor()

    def register_memory(self, regions: Sequence[Region]) -> None:
        if not self._told:
            super().register_memory(regions)


@mutant("the_last_region_is_forgotten", "KV-TOPO-10")
class TheLastRegionIsForgotten(FakeTransport):
    """What core stages is read from the plan's last local region: here one before it is read."""

    def prepare(self, peer: PeerKey, plan: TransferPlan) -> FakePrepared:
        prepared = super().prepare(peer, plan)
        if plan.local_regions[-1].pool == "staging":
            prepared.local[-1] = prepared.local[0]
        return prepared
