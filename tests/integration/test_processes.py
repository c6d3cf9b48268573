"""Two real processes: traffic, and what each side sees when the other one is killed, frozen, continued or restarted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

import pytest

from kv_core import BootstrapServer
from tests.support.memory import Shape
from tests.support.orders import Order
from tests.support.pair import DEFAULTS, at_rest
from tests.support.rank import RankProcess
from tests.support.waiting import wait_until

SHAPE = Shape(pages=256, layers=4, page_bytes=1024, aux_rows=32)
QUICK = {"probe_interval_s": 0.25}
DELAYED = {"options": {"faults": [{"kind": "hold", "every": 1, "seconds": 60.0}]}}
"""Transfers that stay in the middle of their way until something happens."""


@pytest.fixture(autouse=True, params=["write", "read"])
def direction(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who moves the bytes."""
    monkeypatch.setitem(DEFAULTS, "direction", request.param)
    return str(request.param)


@contextmanager
def two_processes(mover: dict[str, Any] | None = None, **config: Any) -> Iterator[tuple[RankProcess, RankProcess, str]]:
    """Prefill, decode, and the bootstrap server's address. ``mover``: settings of the side that moves the bytes."""
    with BootstrapServer(port=0) as server, RankProcess("prefill") as source, RankProcess("decode") as target:
        common = DEFAULTS | QUICK | config
        pushes = DEFAULTS["direction"] == "write"
        source.start(SHAPE, config=common | {"bootstrap_addr": server.address} | ((pushes and mover) or {}))
        target.start(SHAPE, config=common | ((not pushes and mover) or {}))
        yield source, target, server.address


def open_rooms(source: RankProcess, target: RankProcess, order: Order, numbers: range) -> None:
    """The same orders on both sides."""
    orders = [replace(order, room=number) for number in numbers]
    source.open(orders)
    target.open(orders)


def all_ended(rank: RankProcess, rooms: range) -> None:
    wait_until(
        lambda: all(room in rank.ended for room in rooms), lambda: f"{rank.name}: {rank.call('states')} {rank.log()}"
    )


def all_released(rank: RankProcess, rooms: range) -> None:
    wait_until(lambda: all(room in rank.released for room in rooms), lambda: f"{rank.name}: {rank.call('snapshot')}")


def all_good(source: RankProcess, target: RankProcess, order: Order, rooms: range) -> None:
    """These rooms go well from their opening to their end."""
    open_rooms(source, target, order, rooms)
    for rank in (source, target):
        all_ended(rank, rooms)
        for room in rooms:
            assert rank.ended[room].succeeded, rank.ended[room]
        all_released(rank, rooms)


def in_the_middle(source: RankProcess, rooms: range) -> None:
    """Until all of these rooms move bytes."""
    wait_until(
        lambda: all(source.call("states").get(str(room)) == "Transferring" for room in rooms),
        lambda: f"transfers: {source.call('states')}",
    )


def clean(*ranks: RankProcess) -> None:
    """At rest, nothing has landed where it must not, and every thread lives."""
    for rank in ranks:
        wait_until(lambda r=rank: not at_rest(r.call("snapshot")), lambda r=rank: str(at_rest(r.call("snapshot"))))  # type: ignore[misc]
        assert rank.call("check_rest") == []
        assert all(thread["alive"] for thread in rank.call("health").values())


ORDERS = {
    "chunks": Order(0, "", pages=8, chunks=3, aux=True),
    "layers": Order(0, "", pages=6, chunks=4, layerwise=True),
    "prefix, sent early": Order(0, "", pages=9, prefix=4, early=True, aux=True),
    "nothing but a row": Order(0, "", pages=5, prefix=5, aux=True),
    "nothing": Order(0, "", pages=0),
}


def test_rooms_between_processes():
    with two_processes() as (source, target, addr):
        for number, order in enumerate(ORDERS.values()):
            all_good(source, target, replace(order, addr=addr), range(100 * number, 100 * number + 40))
        clean(source, target)


@pytest.mark.parametrize("victim", ["prefill", "decode"])
def test_a_killed_peer_fails_its_rooms_at_once(victim: str):
    with two_processes(DELAYED) as (source, target, addr):
        rooms = range(100, 110)
        open_rooms(source, target, Order(0, addr, pages=4), rooms)
        in_the_middle(source, rooms)
        dead, survivor = (source, target) if victim == "prefill" else (target, source)
        killed = monotonic()
        dead.kill()
        all_ended(survivor, rooms)
        for room in rooms:
            outcome = survivor.ended[room]
            assert (outcome.state, outcome.stage) == ("Failed", "transfer"), outcome
            assert outcome.code in ("peer_lost", "transport_error"), outcome
            assert outcome.retryable
            assert outcome.ended_s - killed < 10, "at once, on however slow a machine"
        all_released(survivor, rooms)
        clean(survivor)


@pytest.mark.parametrize("victim", ["prefill", "decode"])
def test_a_peer_that_is_restarted_on_the_same_port(victim: str):
    with two_processes() as (source, target, addr):
        order = Order(0, addr, pages=4)
        all_good(source, target, order, range(5))
        dead = source if victim == "prefill" else target
        dead.kill()
        with RankProcess(victim) as again:
            config = DEFAULTS | QUICK | {"control_port": dead.port}
            again.start(SHAPE, config=config | ({"bootstrap_addr": addr} if victim == "prefill" else {}))
            assert again.port == dead.port
            pair = (again, target) if victim == "prefill" else (source, again)
            all_good(*pair, order, range(10, 15))
            clean(*pair)


def test_frozen_prefill_is_dead_after_its_probes_and_comes_back():
    """Nothing that it wrote before, or writes when it wakes up, lands in pages that were given to others meanwhile."""
    with two_processes({"options": {"faults": [{"kind": "delay", "nth": 2, "seconds": 0.2}]}}) as (
        source,
        target,
        addr,
    ):
        order = Order(0, addr, pages=4)
        all_good(source, target, order, range(1))
        open_rooms(source, target, order, range(10, 11))
        in_the_middle(source, range(10, 11))
        source.freeze()
        all_ended(target, range(10, 11))
        outcome = target.ended[10]
        assert (outcome.state, outcome.code) == ("Failed", "peer_lost"), outcome
        assert "probes" in outcome.message
        assert "dead_after=5" in outcome.message
        all_released(target, range(10, 11))
        source.thaw()
        all_ended(source, range(10, 11))
        assert source.ended[10].state == "Failed"
        all_good(source, target, order, range(20, 30))
        clean(source, target)


def test_frozen_decode_is_dead_after_its_probes_and_comes_back():
    with two_processes({"options": {"faults": [{"kind": "delay", "every": 2, "seconds": 0.2}]}}) as (
        source,
        target,
        addr,
    ):
        order = Order(0, addr, pages=4)
        all_good(source, target, order, range(1))
        rooms = range(10, 14)
        open_rooms(source, target, order, rooms)
        wait_until(lambda: "Transferring" in source.call("states").values() or len(source.ended) >= 5, "a transfer")
        target.freeze()
        all_ended(source, rooms)
        lost = [source.ended[room] for room in rooms if source.ended[room].state == "Failed"]
        assert all(o.code in ("peer_lost", "transport_error") for o in lost), lost
        target.thaw()
        all_ended(target, rooms)
        # What prefill had sent may lie in the socket of the frozen process: its word was needed, and has come.
        for rank in (source, target):
            all_released(rank, rooms)
        all_good(source, target, order, range(20, 30))
        clean(source, target)


def test_a_short_stop_is_no_death():
    """Shorter than the probes allow: nobody notices, and the rooms go on."""
    with two_processes(probe_interval_s=2.0) as (source, target, addr):
        order = Order(0, addr, pages=4)
        for number, rank in enumerate((source, target)):
            rank.freeze()
            rooms = range(10 * number, 10 * number + 5)
            other = target if rank is source else source
            other.open([replace(order, room=room) for room in rooms])
            rank.thaw()
            rank.open([replace(order, room=room) for room in rooms])
            for side in (source, target):
                all_ended(side, rooms)
                assert all(side.ended[room].succeeded for room in rooms)
        clean(source, target)


def test_a_peer_that_closes_says_so():
    with two_processes(DELAYED, close_timeout_s=1.0) as (source, target, addr):
        rooms = range(5)
        open_rooms(source, target, Order(0, addr, pages=2), rooms)
        in_the_middle(source, rooms)
        number = target.begin("close")
        all_ended(source, rooms)
        for room in rooms:
            assert source.ended[room].code == "closed", source.ended[room]
            assert "decode manager was closed" in source.ended[room].message
            assert source.ended[room].retryable
        target.reply(number)
        all_released(source, rooms)
        clean(source)
