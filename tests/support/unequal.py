"""Rooms between ranks of unequal shapes, over real managers: memory and expectations are those of the planner's own tests."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from core.tests.layout.topologies.model import POISON, Case, Side
from core.tests.layout.topologies.world import World, topology
from kv_core import BootstrapServer, KVArgs, KVTransferMetric, Pool, Role, Topology, TransferConfig, load_backend
from tests.support.pair import assert_success
from tests.support.waiting import wait_until

Bytes = npt.NDArray[np.uint8]
ROOM = 7
PAGED = frozenset({"window"})
"""State that is kept in pages; the others have one row for the request."""


class Ranked(NamedTuple):
    """A rank's description, its memory, what has to stand there in the end, and the pages that it names."""

    args: KVArgs
    memory: list[Bytes]
    wanted: list[Bytes]
    pages: npt.NDArray[np.uint64]
    row: int
    states: dict[str, Any]


def _as_bytes(numbers: np.ndarray) -> Bytes:
    """A byte for each number of the oracle; none of them is 0, which is poison."""
    mixed = (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return np.where(numbers == POISON, 0, mixed % np.uint64(251) + np.uint64(1)).astype(np.uint8).ravel()


def _rank(world: World, which: int, place: Topology) -> Ranked:
    case = world.case
    side: Side = (case.source, case.destination)[which]
    positions = np.arange(place.cp_rank, -(-case.tokens // side.page), side.cp)
    first = case.prefix if which else case.prefix * case.destination.page // side.page
    kv = world._held(positions[positions >= first])
    window = world._held(positions[positions >= world.model.begin // side.page])
    row = int(world.rng.integers(3))
    layers = case.stages[which][place.pp_rank]
    args, contents = world._memory(side, place, layers, kv, window, row)
    memory = [_as_bytes(content) for content in contents]
    wanted: list[Bytes] = []
    if which:
        wanted = [_as_bytes(each) for each in world._memory(side, place, layers, kv, window, row, wanted=True)[1]]
        memory = [np.zeros_like(content) for content in memory]
    addresses = iter([int(content.__array_interface__["data"][0]) for content in memory])

    def placed(pool: Pool) -> Pool:
        return replace(pool, buffers=tuple(replace(buffer, address=next(addresses)) for buffer in pool.buffers))

    assert args.aux is not None, "each of these ranks has rows"
    kv_pool, states, aux = placed(args.kv), tuple(map(placed, args.states)), placed(args.aux)
    args = replace(args, kv=kv_pool, states=states, aux=aux, model="m", kv_layout=side.order)
    named = {pool.name: window.pages if pool.name in PAGED else [row] for pool in states}
    return Ranked(args, memory, wanted, kv.pages, row, named)


def move(case: Case, backend: str = "fake", **config: Any) -> tuple[list[KVTransferMetric], list[KVTransferMetric]]:
    """One room between all ranks of a case, in two chunks; every byte of every decode rank is compared. Each side's metrics."""
    world, settings = World(case), TransferConfig(**config)
    with ExitStack() as stack:
        server = stack.enter_context(BootstrapServer(port=0))
        record = load_backend(backend)

        def open_ranks(which: int, side: Side, more: Mapping[str, Any]) -> list[tuple[Any, Ranked]]:
            found = []
            for ranks in product(range(side.tp), range(side.pp), range(side.cp), range(1)):
                place = topology(ranks, side)
                rank = _rank(world, which, place)
                role = Role.DECODE if which else Role.PREFILL
                manager = record.create_manager(role, rank.args, replace(settings, **more))
                found.append((stack.enter_context(manager), rank))
            return found

        sources = open_ranks(0, case.source, {"bootstrap_addr": server.address})
        targets = open_ranks(1, case.destination, {})
        senders, receivers = [], []
        for manager, rank in targets:
            receiver = manager.create_receiver(server.address, ROOM)
            receiver.init()
            receiver.send_metadata(
                rank.pages, aux_index=rank.row, state_indices=rank.states, decode_prefix_len=case.prefix
            )
            receivers.append(receiver)
        for manager, rank in sources:
            sender = manager.create_sender(server.address, ROOM)
            sender.init(len(rank.pages), aux_index=rank.row)
            half = len(rank.pages) // 2
            if half:
                sender.send(rank.pages[:half])
            sender.send(rank.pages[half:], state_indices=rank.states)
            senders.append(sender)
        assert_success(*senders, *receivers)
        for place, (_, rank) in enumerate(targets):
            for number, (found, wanted) in enumerate(zip(rank.memory, rank.wanted, strict=True)):
                wrong = np.flatnonzero(found != wanted)
                assert not wrong.size, f"{case}: decode rank {place}, buffer {number}: wrong from byte {wrong[:8]} on"
        for handle in (*senders, *receivers):
            wait_until(handle.is_release_safe, "the release after success")
        return [each.get_transfer_metric() for each in senders], [each.get_transfer_metric() for each in receivers]
