"""Ranks with memory, cut from the model; plans carried out by index arithmetic of their own; what came of it compared."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

from core.tests.layout.topologies.model import POISON, STATE_ROWS, Case, Model, Side
from kv_core.contract.items import ItemLayout
from kv_core.contract.memory import Buffer, KVArgs, Pool, Topology
from kv_core.contract.transport import TransferPlan
from kv_core.layout import (
    Batch,
    MemoryLayout,
    Pages,
    Stages,
    missing_layers,
    page_batch,
    plan_transfer,
    segments,
    source_ranks,
)

SPARE = 2


class Rank(NamedTuple):
    """A rank's memory: one number for each byte, all regions one after the other from ``bases`` on."""

    place: Topology
    layout: MemoryLayout
    bases: np.ndarray
    memory: np.ndarray
    pages: np.ndarray
    positions: np.ndarray
    slot: int


class World:
    """One case. ``run`` moves everything that some decode ranks need and compares; ``moves`` counts plans."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.model = Model(case)
        self.rng = np.random.default_rng(case.seed)
        self.sources: dict[tuple[int, ...], Rank] = {}
        self.moves = 0
        self.ranks = 0

    # -- ranks -----------------------------------------------------------------------------------------------------

    def rank(self, which: int, place: Topology) -> Rank:
        """A source (0) with its bytes, or a destination (1) full of poison."""
        case = self.case
        side = (case.source, case.destination)[which]
        last = -(-case.tokens // side.page)
        positions = np.arange(place.cp_rank, last, side.cp)
        if which:
            positions = positions[positions >= case.prefix]
        num_items = len(positions) + SPARE
        pages = self.rng.permutation(num_items)[: len(positions)].astype(np.uint64)
        slot = int(self.rng.integers(3))
        args, contents = self._memory(side, place, case.stages[which][place.pp_rank], positions, pages, num_items, slot)
        layout = MemoryLayout.from_wire(MemoryLayout.of(args).to_wire())
        sizes = [region.nbytes for region in layout.regions()]
        memory = np.concatenate([content.ravel() for content in contents])
        assert memory.size == sum(sizes)
        if which:
            memory = np.full(memory.size, POISON, np.uint32)
        return Rank(place, layout, np.concatenate(([0], np.cumsum(sizes)[:-1])), memory, pages, positions, slot)

    def _memory(
        self, side: Side, place: Topology, layers: range, positions: np.ndarray, pages: np.ndarray, num_items: int,
        slot: int, *, wanted: bool = False,
    ) -> tuple[KVArgs, list[np.ndarray]]:  # fmt: skip
        """The engine's description, and what each buffer holds."""
        model, case = self.model, self.case
        heads, width = model.kv.shape[3:]
        parts = case.parts if side.fused else ("",)
        page = ItemLayout.page(side.page, heads, width, tp_size=side.tp, order=side.order, parts=parts)
        state = ItemLayout.state(
            [(name, array.shape[2], array.shape[3]) for name, array in model.state.items()],
            tp_size=side.tp, rows=STATE_ROWS,
        )  # fmt: skip
        buffers, states, contents = [], [], []
        cut = model.wanted if wanted else model.page_bytes
        address = 4096
        for layer in layers:
            for part, rows in enumerate(cut(side, place.tp_rank, layer, positions)):
                assert rows.shape[1] == page.nbytes
                buffers.append(
                    Buffer(address, page.nbytes, num_items, layer, "" if side.fused else case.parts[part], page)
                )
                content = np.full((num_items, page.nbytes), POISON, np.uint32)
                content[pages.astype(np.intp)] = rows
                contents.append(content)
                address += content.size
        for layer in layers if case.state else ():
            row = model.state_bytes(side, place.tp_rank, layer)
            states.append(Buffer(address, row.size, 3, layer, item=state))
            content = np.full((3, row.size), POISON, np.uint32)
            content[slot] = row
            contents.append(content)
            address += content.size
        row = np.full((4, model.aux.size), POISON, np.uint32)
        row[slot] = model.aux
        contents.append(row)
        args = KVArgs(
            kv=Pool("kv", tuple(buffers)), states=(Pool("conv", tuple(states)),) if states else (),
            aux=Pool.uniform("aux", [address], model.aux.size, 4), page_size=side.page, topology=place,
        )  # fmt: skip
        return args, contents

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
        here, there = pages_of(local), pages_of(remote)
        at = len(here.items) // 2
        rest = {
            name: (Pages(np.array([local.slot], np.uint64)), Pages(np.array([remote.slot], np.uint64)))
            for name in ("conv", "aux")
        }
        first = Pages(here.items[:at], here.first, here.step)
        second = Pages(here.items[at:], here.first + at * here.step, here.step)
        return [page_batch(plan, {"kv": (first, there)}), page_batch(plan, {"kv": (second, there), **rest})]

    def move(self, source: Rank, rank: Rank, counts: np.ndarray) -> None:
        plan = self.plan(source, rank)
        self.moves += 1
        for number, batch in enumerate(self.batches(plan, source, rank)):
            carry = by_formula if (self.case.seed + self.moves + number) % 2 else by_copies
            here, there = carry(batch, source, rank)
            assert here.size == batch.nbytes
            rank.memory[there] = source.memory[here]
            np.add.at(counts, there, 1)
        self.same_streams(plan, source, rank)

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
        here, there = pages_of(source), pages_of(rank)
        mine = page_batch(plan, {"kv": (here, there)})
        other = page_batch(theirs, {"kv": (there, here)})
        seen = [stream(mine, "local", source), stream(mine, "remote", rank), stream(other, "local", rank)]
        for one in seen[1:]:
            np.testing.assert_array_equal(seen[0], one)

    # -- comparing -------------------------------------------------------------------------------------------------

    def check(self, rank: Rank, counts: np.ndarray) -> None:
        """Every byte that the prompt has here was written once, from the right byte; nothing else was touched."""
        case, place = self.case, rank.place
        num_items = len(rank.positions) + SPARE
        _, contents = self._memory(
            case.destination, place, case.stages[1][place.pp_rank], rank.positions, rank.pages, num_items, rank.slot,
            wanted=True,
        )  # fmt: skip
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


def pages_of(rank: Rank) -> Pages:
    return Pages(rank.pages, int(rank.positions[0]) if len(rank.positions) else 0, rank.place.cp_size)


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


def stream(batch: Batch, side: str, rank: Rank) -> np.ndarray:
    found = segments(batch, side)  # type: ignore[arg-type]
    return rank.memory[spread(rank.bases[found.region.astype(np.intp)] + found.offset.astype(np.int64), found.length)]
