"""Pull: decode reads from prefill's memory. What is asked of rooms in either direction stands in other files; here is the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from core.tests.layout.topologies.model import Case, Side
from kv_core import (
    BackendLoadError,
    BackendNotFound,
    BootstrapServer,
    Capability,
    DigestMode,
    Direction,
    FailureCode,
    FailureStage,
    InvalidConfig,
    NotSupported,
    Role,
    TransferConfig,
    load_backend,
)
from kv_core.contract.observers import Observers
from kv_core.runtime import create_manager
from tests.support.memory import RankMemory, Shape
from tests.support.orders import Order
from tests.support.pair import QUICK, Pair, assert_failed, assert_success
from tests.support.rank import RankProcess
from tests.support.unequal import move
from tests.support.waiting import wait_until

READ, WRITE = Direction.READ, Direction.WRITE
SHAPE = Shape(pages=64, layers=4, page_bytes=4096, aux_rows=8, states={"mamba": (8, 640)})


@pytest.fixture(params=["fake", "nixl", "mooncake"])
def backend(request: pytest.FixtureRequest) -> str:
    """Those that read."""
    try:
        load_backend(request.param)
    except (BackendLoadError, BackendNotFound) as error:
        pytest.skip(f"{request.param} can't be loaded here: {error}")
    return str(request.param)


# -- which direction ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("able", "asked", "found"),
    [
        ({Capability.WRITE, Capability.READ}, None, WRITE),
        ({Capability.WRITE, Capability.READ}, READ, READ),
        ({Capability.WRITE, Capability.READ}, "read", READ),
        ({Capability.WRITE}, None, WRITE),
        ({Capability.READ}, None, READ),
        ({Capability.WRITE}, READ, "reading from a peer (pull)"),
        ({Capability.READ}, WRITE, "writing to a peer (push)"),
    ],
)
def test_the_direction_is_the_settings_or_else_the_backends(able: set[Capability], asked: Any, found: Direction | str):
    record = load_backend("fake").record
    record = replace(record, info=replace(record.info, capabilities=frozenset(able)))
    args = RankMemory(Shape(pages=4, layers=1, page_bytes=64)).args()
    config = TransferConfig(direction=asked)
    if not isinstance(found, Direction):
        with pytest.raises(NotSupported) as caught:
            create_manager(record, Role.DECODE, args, config, Observers())
        assert found in str(caught.value)
        return
    with create_manager(record, Role.DECODE, args, config, Observers()) as manager:
        assert manager._parts.machine.me.direction is found  # type: ignore[attr-defined]


def test_a_direction_that_is_none():
    with pytest.raises(InvalidConfig, match=r"TransferConfig.direction is 'sideways', must be 'write', 'read' or None"):
        TransferConfig(direction="sideways")  # type: ignore[arg-type]


def test_directions_that_differ_are_refused_with_both_values():
    with Pair(SHAPE, config=QUICK, prefill={"direction": "read"}, decode={"direction": "write"}) as pair:
        receiver, sender = pair.receiver(5), pair.sender(5, [1])
        for handle in (receiver, sender):
            failure = assert_failed(handle)
            assert (failure.stage, failure.code) == (FailureStage.HANDSHAKE, FailureCode.INCOMPATIBLE)
            assert "direction" in failure.message
            assert "'read'" in failure.message
            assert "'write'" in failure.message
            assert handle.is_release_safe()


# -- every form of a room, on every backend that reads -----------------------------------------------------------------


RANGES: list[list[range | None]] = [[None], [range(2), range(2, 4)], [range(3, 4), range(3)]]


def test_chunks_layers_states_and_rows(backend: str):
    config = {"direction": "read", "digest": DigestMode.ALL}
    with Pair(SHAPE, config=config, backends=(backend, backend)) as pair:
        for room, ranges in enumerate(RANGES):
            pages, target = [5, 9, 2, 7], [1, 0, 3, 6]
            receiver, sender = pair.receiver(room), pair.sender(room, pages, row=room)
            receiver.send_metadata(target, aux_index=7 - room)
            for part in (pages[:1], pages[1:]):
                for layers in ranges:
                    sender.send(part, layers=layers)
            assert_success(sender, receiver)
            assert pair.target.holds(pair.seed, room, target)
            assert pair.target.holds_row(pair.seed, room, 7 - room)
            here, there = sender.get_transfer_metric(), receiver.get_transfer_metric()
            assert here.chunks == there.chunks == 2 * len(ranges)
            assert here.transfer_total_bytes == there.transfer_total_bytes
            assert here.transfer_total_bytes == 4 * 2 * SHAPE.layers * SHAPE.page_bytes + SHAPE.aux_bytes
            assert here.transfer_latency_s == there.transfer_latency_s
            assert here.latency_source == there.latency_source
            assert 0 < (here.transfer_latency_s or 0) < (here.total_latency_s or 0)
            for handle in (sender, receiver):
                wait_until(handle.is_release_safe, "the release after success")
                handle.clear()
            pair.target.wipe(target)
        pair.at_rest()


CASES = {
    "heads of two in one": Case(Side(tp=2), Side(), stages=((range(4),), (range(4),)), tokens=12),
    "heads of one in two": Case(Side(), Side(tp=2), stages=((range(4),), (range(4),)), tokens=12),
    "smaller pages": Case(Side(page=2), Side(page=4), stages=((range(4),),) * 2, tokens=10, state=False, prefix=1),
    "larger pages": Case(Side(page=4), Side(page=2), stages=((range(4),),) * 2, tokens=10, state=False, prefix=1),
    "stages": Case(Side(pp=2), Side(pp=1), stages=((range(2), range(2, 4)), (range(4),)), tokens=12),
    "dummies": Case(Side(tp=4), Side(tp=1), heads=1, mla=True, stages=((range(1),),) * 2, tokens=12),
    "context parallel": Case(
        Side(cp=2, order="HND"), Side(cp=1, tp=2), stages=((range(4),),) * 2, tokens=14, state=False, prefix=2
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_unequal_topologies(name: str, backend: str):
    sent, received = move(CASES[name], backend, direction=READ, digest=DigestMode.ALL)
    there, here = (sum(each.transfer_total_bytes or 0 for each in side) for side in (sent, received))
    assert there == here > 0


# -- processes ---------------------------------------------------------------------------------------------------------

LARGE = Shape(pages=256, layers=4, page_bytes=64 * 1024, aux_rows=32)


@contextmanager
def two_processes(backend: str, **decode: Any) -> Iterator[tuple[RankProcess, RankProcess, str]]:
    """Prefill, decode, and the bootstrap server's address."""
    config = {"probe_interval_s": 0.25, "direction": "read"}
    with BootstrapServer(port=0) as server, RankProcess("prefill") as source, RankProcess("decode") as target:
        source.start(LARGE, config=config | {"bootstrap_addr": server.address}, backend=backend)
        target.start(LARGE, config=config | decode, backend=backend)
        yield source, target, server.address


@pytest.mark.parametrize("victim", ["prefill", "decode"])
def test_what_is_left_of_a_killed_peer(victim: str, backend: str):
    """Whatever moved: the survivor's rooms end, and its pages come back, for the proof can be had on one host."""
    held = {"options": {"faults": [{"kind": "hold", "every": 5, "seconds": 60.0}]}} if backend == "fake" else {}
    with two_processes(backend, **held) as (source, target, addr):
        rooms = range(100, 110)  # all of them fit into the pages: none is opened after the death
        for rank in (source, target):
            rank.open([Order(room, addr, pages=24, chunks=6) for room in rooms])
        wait_until(
            lambda: "Bootstrapping" not in source.call("states").values(),
            lambda: f"prefill to hear of all rooms: {source.call('states')} {target.log()}",
        )
        dead, survivor = (source, target) if victim == "prefill" else (target, source)
        dead.kill()
        all_released(survivor, list(rooms))
        for room in rooms:
            outcome = survivor.ended[room]
            assert outcome.succeeded or outcome.code in ("peer_lost", "transport_error"), outcome
        assert survivor.call("check_rest") == []


def test_rooms_that_are_aborted_in_each_state_from_each_side(backend: str):
    with two_processes(backend) as (source, target, addr):
        steps = product(("Bootstrapping", "WaitingForInput", "Transferring"), ("prefill", "decode"))
        for number, (state, side) in enumerate(steps):
            orders = [Order(8 * number + i, addr, pages=16, chunks=5, aux=True) for i in range(8)]
            spoilt = [replace(order, act=f"{'abort' if i % 2 else 'clear'}:{state}") for i, order in enumerate(orders)]
            source.open(spoilt if side == "prefill" else orders)
            target.open(spoilt if side == "decode" else orders)
            for rank in (source, target):
                all_released(rank, [order.room for order in orders])
                for order in orders:
                    outcome = rank.ended[order.room]
                    assert outcome.succeeded or outcome.code.startswith("aborted"), (state, side, outcome)
        for rank in (source, target):
            assert rank.call("check_rest") == []


def all_released(rank: RankProcess, rooms: list[int]) -> None:
    wait_until(
        lambda: all(room in rank.released for room in rooms), lambda: f"{rank.name}: {rank.call('snapshot')}", 60
    )
