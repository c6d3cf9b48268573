"""Ranks with memory, cut from the model; plans carried out by index arithmetic of their own; what came of it compared."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

from core.tests.layout.topologies.model import POISON, STATE_ROWS, Case, Model, Side
from kv_core.contract.items import ItemLayout
from kv_core.contract.memory import Buffer, KVArgs, Pool, Topology
from kv_core.contract.transport import PoolSlice, TransferPlan
from kv_core.layout import (
    Batch,
    MemoryLayout,
    Pages,
    Stages,
    mirror,
    missing_layers,
    page_batch,
    plan_transfer,
    segments,
    source_ranks,
)
from kv_core.layout.staging import StagedPool, staged_pools

SPARE = 2
AREA = 1 << 30
"""Room for everything: whatever can be staged is."""


class Held(NamedTuple):
    """Pages of a pool that a rank has: numbers and positions; ``num_items`` there are."""

    pages: np.ndarray
    positions: np.ndarray
    num_items: int

    def at(self, place: Topology) -> Pages:
        """What the engine tells of them."""
        return Pages(self.pages, int(self.positions[0]) if len(self.positions) else 0, place.cp_size)


class Rank(NamedTuple):
    """A rank's memory: one number for each byte, all regions one after the other from ``bases`` on."""

    place: Topology
    layout: MemoryLayout
    bases: np.ndarray
    memory: np.ndarray
    kv: Held
    window: Held
    slot: int


class Memory:
    """Buffers one after the other: the engine's description of them and what is in them."""

    def __init__(self) -> None:
        self.address = 4096
        self.contents: list[np.ndarray] = []

    def buffer(
        self, rows: np.ndarray, where: np.ndarray, num_items: int, layer: int, part: str, item: ItemLayout | None
    ) -> Buffer:
        """A buffer with these rows at these items, poison elsewhere."""
        length = rows.shape[1]
        assert item is None or item.nbytes == length
        content = np.full((num_items, length), POISON, np.uint32)
        content[where.astype(np.intp)] = rows
        self.contents.append(content)
        made = Buffer(self.address, length, num_items, layer, part, item)
        self.address += content.size
        return made


class World:
    """One case. ``run`` moves everything that some decode ranks need and compares; ``moves`` counts plans, ``staged``
    batches by way of a staging area.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.model = Model(case)
        self.rng = np.random.default_rng(case.seed)
        self.sources: dict[tuple[int, ...], Rank] = {}
        self.moves = 0
        self.staged = 0
        self.ranks = 0

    # -- ranks -----------------------------------------------------------------------------------------------------

    def rank(self, which: int, place: Topology) -> Rank:
        """A source (0) with its bytes, or a destination (1) full of poison."""
        case = self.case
        side = (case.source, case.destination)[which]
        positions = np.arange(place.cp_rank, -(-case.tokens // side.page), side.cp)
        kv = self._held(positions[positions >= case.prefix] if which else positions)
        window = self._held(positions[positions >= self.model.begin // side.page])
        slot = int(self.rng.integers(3))
        args, contents = self._memory(side, place, case.stages[which][place.pp_rank], kv, window, slot)
        layout = MemoryLayout.from_wire(MemoryLayout.of(args).to_wire())
        sizes = [region.nbytes for region in layout.regions()]
        memory = np.concatenate([content.ravel() for content in contents])
        assert memory.size == sum(sizes)
        if which:
            memory = np.full(memory.size, POISON, np.uint32)
        return Rank(place, layout, np.concatenate(([0], np.cumsum(sizes)[:-1])), memory, kv, window, slot)

    def _held(self, positions: np.ndarray) -> Held:
        num_items = len(positions) + SPARE
        return Held(self.rng.permutation(num_items)[: len(positions)].astype(np.uint64), positions, num_items)

    def _memory(
        self, side: Side, place: Topology, layers: range, kv: Held, window: Held, slot: int, *, wanted: bool = False
    ) -> tuple[KVArgs, list[np.ndarray]]:
        """The engine's description, and what each buffer holds."""
        model, case, memory = self.model, self.case, Memory()

        def pages(whole: np.ndarray, layer: int, held: Held, parts: tuple[str, ...]) -> list[Buffer]:
            heads, width = whole.shape[2:]
            blocks = parts if side.fused else ("",)
            item = ItemLayout.page(side.page, heads, width, tp_size=side.tp, order=side.order, parts=blocks)
            rows = model.cut(side, place.tp_rank, whole, held.positions, wanted=wanted)
            names = ("",) if side.fused else parts
            return [
                memory.buffer(part, held.pages, held.num_items, layer, name, item)
                for name, part in zip(names, rows, strict=True)
            ]

        buffers = [one for layer in layers for one in pages(model.kv[layer], layer, kv, case.parts)]
        states = []
        if case.state:
            parts = [(name, array.shape[2], array.shape[3]) for name, array in model.state.items()]
            item = ItemLayout.state(parts, tp_size=side.tp, rows=STATE_ROWS)
            rows = [model.state_bytes(side, place.tp_rank, layer)[None, :] for layer in layers]
            conv = [
                memory.buffer(row, np.array([slot]), 3, layer, "", item)
                for layer, row in zip(layers, rows, strict=True)
            ]
            states.append(Pool("conv", tuple(conv)))
            odd = [one for layer in layers if layer % 2 for one in pages(model.window[layer], layer, window, ("w",))]
            states += [Pool("window", tuple(odd))] if odd else []
        if case.source.tp == case.destination.tp:
            rows = [model.opaque[layer, place.tp_rank][None, :] for layer in layers]
            found = [
                memory.buffer(row, np.array([slot]), 3, layer, "", None)
                for layer, row in zip(layers, rows, strict=True)
            ]
            states.append(Pool("opaque", tuple(found)))
        row = np.full((4, model.aux.size), POISON, np.uint32)
        row[slot] = model.aux
        args = KVArgs(
            kv=Pool("kv", tuple(buffers)), states=tuple(states), page_size=side.page, topology=place,
            aux=Pool.uniform("aux", [memory.address], model.aux.size, 4),
        )  # fmt: skip
        return args, [*memory.contents, row]

    def source(self, ranks: tuple[int, int, int, int]) -> Rank:
        if ranks not in self.sources:
            self.sources[ranks] = self.rank(0, topology(ranks, self.case.source))
        return self.sources[ranks]

    # -- moving ----------------------------------------------------------------------------------------------------

    def run(self, limit: int = 1 << 30) -> None:
        """Serve every decode rank of one data-parallel rank, or a sample of ``limit``, and compare its memory."""
        case = self.case
        places = list(product(range(case.destination.tp), range(case.destination.pp), range(case.destination.cp)))
        dp_rank, prefill_dp = (int(self.rng.integers(side.dp)) for side in (case.destination, case.source))
        chosen = self.rng.permutation(len(places))[:limit]
        for at in chosen.tolist():
            self.serve(topology((*places[at], dp_rank), case.destination), prefill_dp)

    def serve(self, place: Topology, prefill_dp: int) -> None:
        case = self.case
        rank = self.rank(1, place)
        counts = np.zeros(rank.memory.size, np.int64)
        stages = Stages(*(tuple(frozenset(layers) for layers in side) for side in case.stages))
        mapping = source_ranks(
            place, case.source.sizes, prefill_dp, rank.layout, page_size=case.source.page, stages=stages
        )
        for ranks in mapping.required:
            self.move(self.source(ranks), rank, counts)
        assert missing_layers(rank.layout, [self.source(ranks).layout for ranks in mapping.required]) == ()
        self.check(rank, counts)
        self.nothing_from_others(rank, mapping.required, prefill_dp)
        self.ranks += 1

    def plan(self, source: Rank, rank: Rank) -> TransferPlan:
        return plan_transfer(
            source.layout, rank.layout, local_topology=source.place, remote_topology=rank.place, uneven=True
        )

    def batches(self, plan: TransferPlan, local: Rank, remote: Rank) -> list[Batch]:
        """Two chunks, cut between the local side's pages; the second one with state and row."""
        here, there = local.kv.at(local.place), remote.kv.at(remote.place)
        at = len(here.items) // 2
        rest = {
            name: (Pages(np.array([local.slot], np.uint64)), Pages(np.array([remote.slot], np.uint64)))
            for name in ("conv", "opaque", "aux")
        }
        rest["window"] = (local.window.at(local.place), remote.window.at(remote.place))
        first = Pages(here.items[:at], here.first, here.step)
        second = Pages(here.items[at:], here.first + at * here.step, here.step)
        return [page_batch(plan, {"kv": (first, there)}), page_batch(plan, {"kv": (second, there), **rest})]

    def move(self, source: Rank, rank: Rank, counts: np.ndarray) -> None:
        plan = self.plan(source, rank)
        self.moves += 1
        for number, batch in enumerate(self.batches(plan, source, rank)):
            here, there = self.carry(self.case.seed + self.moves + number, plan, batch, source, rank)
            assert here.size == batch.nbytes
            rank.memory[there] = source.memory[here]
            np.add.at(counts, there, 1)
        self.same_streams(plan, source, rank)

    def carry(
        self, way: int, plan: TransferPlan, batch: Batch, source: Rank, rank: Rank
    ) -> tuple[np.ndarray, np.ndarray]:
        """The bytes that a batch moves, here and there, in one of three ways."""
        if way % 3 == 0:
            return by_copies(batch, source, rank)
        if way % 3 == 1:
            return by_formula(batch, source, rank)
        if way % 2:
            mirrored = mirror(plan)
            there, here = self.by_way_of_an_area(mirrored, swapped(batch, plan, mirrored), rank, source)
        else:
            here, there = self.by_way_of_an_area(plan, batch, source, rank)
        return here, there

    def by_way_of_an_area(
        self, plan: TransferPlan, batch: Batch, mine: Rank, other: Rank
    ) -> tuple[np.ndarray, np.ndarray]:
        """What can be staged is: the one side writes what it gathered, or scatters what it read."""
        pools = staged_pools(plan, AREA, AREA)
        self.staged += any(part.plan.pool in pools for part in batch.slices)
        return by_staging(batch, pools, mine, other)

    def same_streams(self, plan: TransferPlan, source: Rank, rank: Rank) -> None:
        """Both ends, each from the plan that it makes itself, see the same bytes in the same order."""
        theirs = plan_transfer(
            rank.layout,
            source.layout,
            local_topology=rank.place,
            remote_topology=source.place,
            local_sends=False,
            uneven=True,
        )
        here, there = source.kv.at(source.place), rank.kv.at(rank.place)
        mine = page_batch(plan, {"kv": (here, there)})
        other = page_batch(theirs, {"kv": (there, here)})
        seen = [stream(mine, "local", source), stream(mine, "remote", rank), stream(other, "local", rank)]
        for one in seen[1:]:
            np.testing.assert_array_equal(seen[0], one)

    # -- comparing -------------------------------------------------------------------------------------------------

    def check(self, rank: Rank, counts: np.ndarray) -> None:
        """Every byte that the prompt has here was written once, from the right byte; nothing else was touched."""
        case, place = self.case, rank.place
        _, contents = self._memory(
            case.destination, place, case.stages[1][place.pp_rank], rank.kv, rank.window, rank.slot, wanted=True
        )
        expected = np.concatenate([content.ravel() for content in contents])
        np.testing.assert_array_equal(rank.memory, expected)
        np.testing.assert_array_equal(counts, (expected != POISON).astype(np.int64))

    def nothing_from_others(self, rank: Rank, required: tuple[tuple[int, ...], ...], prefill_dp: int) -> None:
        """Ranks that are not required have nothing to send: a few of them."""
        case = self.case
        sizes = (case.source.tp, case.source.pp, case.source.cp)
        for _ in range(2):
            tp, pp, cp = (int(self.rng.integers(size)) for size in sizes)
            ranks = (tp, pp, cp, prefill_dp)
            if ranks not in required:
                source = self.source(ranks)
                assert all(batch.nbytes == 0 for batch in self.batches(self.plan(source, rank), source, rank))


def topology(ranks: tuple[int, ...], side: Side) -> Topology:
    return Topology(ranks[0], side.tp, ranks[1], side.pp, ranks[2], side.cp, ranks[3], side.dp)


def spread(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The bytes of ranges, one after the other."""
    length = length.astype(np.int64)
    ends = np.cumsum(length)
    return np.repeat(start.astype(np.int64) - (ends - length), length) + np.arange(int(length.sum()))


def by_copies(batch: Batch, source: Rank, rank: Rank) -> tuple[np.ndarray, np.ndarray]:
    """From the flat form."""
    copies = batch.copies()
    here = source.bases[copies.local_region.astype(np.intp)] + copies.local_offset.astype(np.int64)
    there = rank.bases[copies.remote_region.astype(np.intp)] + copies.remote_offset.astype(np.int64)
    return spread(here, copies.length), spread(there, copies.length)


def by_formula(batch: Batch, source: Rank, rank: Rank) -> tuple[np.ndarray, np.ndarray]:
    """From the index form, by the formula in ``PoolPlan``."""
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for part in batch.slices:
        plan = part.plan
        for lane in part.lanes.tolist():
            inner = np.arange(int(plan.inner_count[lane]))[None, :, None]
            byte = np.arange(int(plan.length[lane]))[None, None, :]
            sides = (
                (source, plan.local_region, plan.local_offset, part.local_items, plan.local_stride, plan.local_inner_stride),
                (rank, plan.remote_region, plan.remote_offset, part.remote_items, plan.remote_stride, plan.remote_inner_stride),
            )  # fmt: skip
            for out, (one, region, offset, items, stride, step) in zip(found, sides, strict=True):
                start = int(one.bases[int(region[lane])]) + int(offset[lane])
                item = items.astype(np.int64)[:, None, None] * int(stride[lane])
                out.append((start + item + inner * int(step[lane]) + byte).ravel())
    here, there = (np.concatenate(side) if side else np.zeros(0, np.int64) for side in found)
    return here, there


def by_staging(batch: Batch, pools: dict[str, StagedPool], source: Rank, rank: Rank) -> tuple[np.ndarray, np.ndarray]:
    """By way of an area in which each byte is the number of the byte that was gathered there."""
    found = [by_copies(Batch(part for part in batch.slices if part.plan.pool not in pools), source, rank)]
    for part in batch.slices:
        pool = pools.get(part.plan.pool)
        if pool is None:
            continue
        count, first = part.local_items.size, source.layout.regions()[0].address
        area = np.full((count + 1) * pool.row_bytes, -1, np.int64)
        rows = area[pool.row_bytes :].reshape(count, pool.units, pool.unit)
        for slab, units in pool.runs(part.lanes):
            pieces = pool.pieces(part, units)
            assert pieces.min() >= 0
            assert (pieces.max() + 1) * pool.unit <= pool.slabs[slab].nbytes, "within the rank's own buffers"
            start = pool.slabs[slab].address - first
            rows[:, units] = start + pieces[:, :, None] * pool.unit + np.arange(pool.unit)
        copies = Batch([pool.staged(part, 1)]).copies()
        assert set(copies.local_region.tolist()) <= {len(source.bases)}
        here = area[spread(copies.local_offset, copies.length)]
        assert (here >= 0).all(), "only what was gathered is moved"
        there = rank.bases[copies.remote_region.astype(np.intp)] + copies.remote_offset.astype(np.int64)
        found.append((here, spread(there, copies.length)))
    return np.concatenate([one for one, _ in found]), np.concatenate([other for _, other in found])


def swapped(batch: Batch, plan: TransferPlan, mirrored: TransferPlan) -> Batch:
    """The batch as the other side sees it."""
    pools = {id(mine): other for mine, other in zip(plan.pools, mirrored.pools, strict=True)}
    return Batch(
        PoolSlice(pools[id(part.plan)], part.lanes, part.remote_items, part.local_items) for part in batch.slices
    )


def stream(batch: Batch, side: str, rank: Rank) -> np.ndarray:
    found = segments(batch, side)  # type: ignore[arg-type]
    return rank.memory[spread(rank.bases[found.region.astype(np.intp)] + found.offset.astype(np.int64), found.length)]
