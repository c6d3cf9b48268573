"""KV-MET: get_transfer_metric()."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from time import monotonic, sleep

import numpy as np

from kv_conformance.catalog import check
from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import Pair, Room
from kv_conformance.nodes.memory import POISON, Shape
from kv_conformance.suite.held import BIG, LOOK_S, fly
from kv_conformance.suite.in_node_metric import different_metrics
from kv_conformance.suite.playing import Part, metrics_grow, play_both, went_well
from kv_core import (
    FAKE_BOOTSTRAP_HOST,
    Capability,
    KVPoll,
    KVTransferMetric,
    NotSupported,
    RoomEventKind,
    TransferState,
)

OPTIONAL = tuple(one.name for one in fields(KVTransferMetric) if one.name not in ("chunks", "latency_source"))
"""Fields that are None until they are known: all durations, and the bytes."""
DURATIONS = tuple(name for name in OPTIONAL if name.endswith("_s"))
KV = (4, 64, 1000)
AUX = (2, 8, 40)
STATES: Mapping[str, tuple[int, int, int]] = {"mamba": (3, 8, 104), "window": (2, 16, 72)}


@check("KV-MET-1")
def test_bytes_and_chunks_are_exact(env: Env) -> None:
    """transfer_total_bytes is the number of bytes of KV, state and auxiliary items that landed, exactly, and chunks the number
    of send() calls that moved bytes, on both sides.

    If this fails, look at what is counted: each item once, whatever it was merged with, and auxiliary rows too, however they
    travel.
    """
    able = env.declares(Capability.STATE)
    pair = env.pair(Shape(kv=KV, aux=AUX, states=STATES if able else {}))
    source, target = env.random.permutation(64)[:17], env.random.permutation(64)[:17]
    states = {"mamba": ([1, 5], [2, 0]), "window": ([3, 4, 9], [9, 1, 0])} if able else None
    page, row = KV[0] * KV[2], AUX[0] * AUX[2]
    state_bytes = (2 * 3 * 104 + 3 * 2 * 72) if able else 0

    _counts(*pair.move([3], [9], clear=False), page, 1, "one page")
    rooms = pair.move(source, target, chunks=3, aux=(4, 6), states=states, clear=False)
    _counts(*rooms, 17 * page + row + state_bytes, 3, "pages in three chunks, states, an auxiliary row")

    sender, receiver = pair.begin(source, target, aux=(1, 2))
    for layers in (range(2), range(2, 4)):
        sender.send(source, layers=layers)
    pair.succeed(sender, receiver)
    _counts(sender, receiver, 17 * page + row, 2, "pages by layers")

    sender, receiver = pair.begin([], [], aux=(3, 5))
    sender.send([])
    pair.succeed(sender, receiver)
    _counts(sender, receiver, row, 1, "an auxiliary row alone")

    sender, receiver = pair.begin([], [])
    sender.send([])
    pair.succeed(sender, receiver)
    _counts(sender, receiver, 0, 0, "nothing at all")


def _counts(sender: Room, receiver: Room, nbytes: int, chunks: int, what: str) -> None:
    for room in (sender, receiver):
        metric, side = room.metric(), room.node.process.name
        assert metric.transfer_total_bytes == nbytes, (
            f"{what}, {side}: transfer_total_bytes is {metric.transfer_total_bytes}, expected {nbytes}"
        )
        assert metric.chunks == chunks, f"{what}, {side}: chunks is {metric.chunks}, expected {chunks}"


@check("KV-MET-2", reaches=("bytes of a room that failed had landed",))
def test_what_is_not_known_is_none(env: Env) -> None:
    """get_transfer_metric() returns a KVTransferMetric in every state; what was moved and how long it took is None, and never
    0, before anything has moved; all is None for ever in a room that failed or was aborted, and in warm-up rooms.

    If this fails, look for a default, or a value of something else, that stands in for one that is not known.
    """
    pair = env.pair(Shape(kv=(4, 64, 1024)))
    sender, receiver = pair.open()
    _nothing_moved(sender, receiver)
    sender.init(4)
    receiver.until(KVPoll.WaitingForInput)
    receiver.send_metadata([4, 5, 6, 7])
    sender.until(KVPoll.WaitingForInput)
    _nothing_moved(sender, receiver)
    sender.send([0, 1])
    arrays = pair.decode.memory.kv
    env.wait_until(lambda: not any((array[4:6] == POISON).any() for array in arrays), "the first chunk has arrived")
    env.reached("bytes of a room that failed had landed")
    sender.abort("the check gives it up")
    receiver.failed()
    aborted, told = pair.begin([1], [2])
    told.abort("the check gives it up")
    aborted.failed()
    wrong = pair.prefill.open(pair.addr, 1 << 70)
    misfit = pair.begin([1, 2], [3, 4])
    misfit[0].send([1, 2, 3])
    misfit[1].failed()
    warm = [node.open(f"{FAKE_BOOTSTRAP_HOST}:8998", 5) for node in (pair.prefill, pair.decode)]
    warm[0].init(1)
    warm[0].send([1])
    warm[1].init()
    warm[1].send_metadata([1])
    rooms = [sender, receiver, aborted, told, wrong, *misfit, *warm]
    _all_none(rooms, "")
    sleep(LOOK_S)
    for room in rooms:
        room.clear()
    _all_none(rooms, " and was cleared")


def _metric(room: Room) -> KVTransferMetric:
    metric = room.metric()
    assert type(metric) is KVTransferMetric, (
        f"{room.node.process.name}: get_transfer_metric() returned {metric!r}, expected a KVTransferMetric"
    )
    return metric


def _nothing_moved(*rooms: Room) -> None:
    for room in rooms:
        metric = _metric(room)
        for name in ("transfer_latency_s", "transfer_total_bytes", "total_latency_s"):
            value = getattr(metric, name)
            assert value is None, f"{room.node.process.name}: nothing has moved, and {name} is {value!r}, expected None"


def _all_none(rooms: list[Room], when: str) -> None:
    for room in rooms:
        metric, state = _metric(room), room.poll()
        known = {name: getattr(metric, name) for name in OPTIONAL if getattr(metric, name) is not None}
        assert not known, (
            f"{room.node.process.name}: a room that ended as {state.name} ({room.failure()}){when} has {known}, "
            "expected None in each of them"
        )


@check("KV-MET-3")
def test_it_is_final_and_the_same_everywhere(env: Env) -> None:
    """A metric grows until the room ends and then stays as it is: unchanged by clear(), by another room of the same number and
    by manager.close(); and it is the one that observers are told with CONCLUDED.

    If this fails, look at where the metric is kept: frozen with the room, and not read from what is counted on.
    """
    observed = {"observed": True}
    pair = env.pair(Shape(kv=(4, 48, 16 << 10)), prefill=observed, decode=observed)
    parts = []
    for _ in range(3):
        source, target = env.random.permutation(48)[:16], env.random.permutation(48)[:16]
        number = pair.number()
        parts.append((Part(number, source, chunks=4), Part(number, target)))
    for both in parts:
        stories = play_both(pair, [both], env.patience_s)
        went_well(stories)
        for story, side in zip(stories[0], ("prefill", "decode"), strict=True):
            metrics_grow(story, side)

    sender, receiver = pair.move([1, 2, 3], [4, 5, 6], chunks=2, clear=False)
    first = {room: _metric(room) for room in (sender, receiver)}
    for room, metric in first.items():
        known = [name for name in ("transfer_latency_s", "transfer_total_bytes") if getattr(metric, name) is None]
        assert not known, f"{room.node.process.name}: the room succeeded, and {known} of its metric are None: {metric}"
        others = room.node.call(different_metrics, room.number, 2000)
        assert others == [metric], f"{room.node.process.name}: one room's metrics after its end: {[metric, *others]}"
    actions: list[tuple[str, Callable[[], None]]] = [
        ("the sender's clear()", sender.clear),
        ("the receiver's clear()", receiver.clear),
        ("another room of its number", lambda: _another(pair, sender.room)),
        ("prefill's manager.close()", pair.prefill.close),
        ("decode's manager.close()", pair.decode.close),
    ]
    for room, metric in first.items():
        _told(env, room, metric)
    for what, action in actions:
        action()
        for room, metric in first.items():
            seen = room.metric()
            assert seen == metric, f"{room.node.process.name}: after {what} the metric is {seen}, it was {metric}"


def _another(pair: Pair, number: int) -> None:
    pair.move([7, 8], [9, 10], room=number)


def _told(env: Env, room: Room, metric: KVTransferMetric) -> None:
    def told() -> list[KVTransferMetric | None]:
        events = room.node.events()[0]
        return [e.metric for e in events if e.room == room.room and e.kind is RoomEventKind.CONCLUDED]

    env.wait_until(told, f"{room.node.process.name}: an observer is told CONCLUDED")
    assert told()[0] == metric, (
        f"{room.node.process.name}: observers were told {told()[0]}, and the handle says {metric}"
    )


@check("KV-MET-4")
def test_durations_are_of_what_they_say(env: Env) -> None:
    """Every duration is non-negative and no longer than the room. transfer_latency_s is the time in which something was on the
    wire, pauses between chunks not counted, and latency_source says who measured it; alloc_latency_s begins with the
    room's opening and lasts until both sides have named their pages.

    If this fails, look at the clock (monotonic, one for all), and at which moments begin and end each duration.
    """
    pair = env.pair(Shape(kv=(4, 48, 16 << 10)))
    pages = np.arange(24)
    opened = monotonic()
    sender, receiver = pair.open()
    receiver.until(KVPoll.WaitingForInput)
    quiet = monotonic()
    sleep(LOOK_S)
    unnamed = monotonic() - quiet
    sender.init(24)
    receiver.send_metadata(pages)
    sender.until(KVPoll.WaitingForInput)
    before = monotonic()
    sender.send(pages[:12])
    env.wait_until(lambda: not _moving(pair, pages[:12]), "the first chunk has arrived, and its transfer has ended")
    pause = monotonic()
    sleep(2 * LOOK_S)
    pause = monotonic() - pause
    sender.send(pages[12:])
    pair.succeed(sender, receiver)
    now = monotonic()
    for room in (sender, receiver):
        side, metric = room.node.process.name, _metric(room)
        _lies(side, metric, "total_latency_s", 0.0, now - opened)
        assert metric.total_latency_s is not None, "it was looked at"
        for name in DURATIONS:
            if getattr(metric, name) is not None:
                _lies(side, metric, name, 0.0, metric.total_latency_s)
        _lies(side, metric, "transfer_latency_s", 0.0, now - before - pause / 2)
        _lies(side, metric, "alloc_latency_s", unnamed, now - opened)
        source = metric.latency_source
        assert source in ("engine", "core"), f"{side}: latency_source is {source!r}, expected 'engine' or 'core'"


def _moving(pair: Pair, pages: np.typing.NDArray[np.int64]) -> bool:
    """Whether something of these pages is under way, or the transfer that brought it is not known to have ended."""
    transfers = pair.prefill.snapshot().get("transfers", {})
    if isinstance(transfers, Mapping) and transfers.get("outstanding_transfers"):
        return True
    return any(bool((array[pages] == POISON).any()) for array in pair.decode.memory.kv)


def _lies(side: str, metric: KVTransferMetric, name: str, least: float, most: float) -> None:
    value = getattr(metric, name)
    assert value is not None, f"{side}: the room succeeded, and {name} is None: {metric}"
    assert least <= value <= most, (
        f"{side}: {name} is {value:.6f}, expected between {least:.6f} and {most:.6f}: {metric}"
    )


@check("KV-MET-5", faults=(Fault.HOLD_DATA,), reaches=("bytes were held",), gate=False)
def test_latency_counts_the_time_on_the_wire(env: Env) -> None:
    """transfer_latency_s is at least as long as bytes of the room were held back on their way, on both sides, and whoever
    measured it: it never stands for something else.

    If this fails, look at what the engine's own time leaves out, and at what is told when the engine tells none.
    """
    flight = fly(env)
    env.reached("bytes were held")
    begin = monotonic()
    sleep(2 * LOOK_S)
    held = monotonic() - begin
    flight.pair.decode.thaw()
    flight.pair.succeed(flight.sender, flight.receiver)
    for room in (flight.sender, flight.receiver):
        latency, side = _metric(room).transfer_latency_s, room.node.process.name
        assert latency is not None, f"{side}: the room succeeded, and transfer_latency_s is None"
        # Engines have clocks of their own: a tenth is for them.
        assert latency >= 0.9 * held, (
            f"{side}: bytes were held for {held:.3f} s, and transfer_latency_s is {latency:.6f}"
        )


@check("KV-MET-6", requires=Capability.ENGINE_LATENCY)
def test_the_engine_tells_its_own_time(env: Env) -> None:
    """With ENGINE_LATENCY each transfer that is done tells the engine's own wire_seconds, more than 0 and no longer than it
    took, and metrics say that the engine measured them.

    If this fails, look at the unit (seconds), at which moments the engine counts from and to, and at the declaration.
    """
    writer, target = env.ends(BIG)
    road = writer.meet(target)
    for _ in range(3):
        begin = monotonic()
        [record] = writer.drive(writer.submit(road, (range(48), range(48))))
        took = monotonic() - begin
        if record.wire_seconds is None and not env.declares(Capability.ENGINE_LATENCY):
            raise NotSupported("the engine's own time", Capability.ENGINE_LATENCY.value)
        assert record.state is TransferState.DONE, f"the transfer is {record.state.value}: {record.error}"
        assert record.wire_seconds is not None, "a transfer is done, and its wire_seconds is None"
        assert 0.0 < record.wire_seconds <= took, (
            f"wire_seconds of {48 << 20} bytes is {record.wire_seconds!r}, expected more than 0 and at most {took:.6f}"
        )
        writer.release(record.number)
    pair = env.pair(Shape(kv=(4, 48, 16 << 10)))
    begin = monotonic()
    rooms = pair.move(range(24), range(24, 48), chunks=3, clear=False)
    for room in rooms:
        metric, side = _metric(room), room.node.process.name
        assert metric.latency_source == "engine", (
            f"{side}: latency_source is {metric.latency_source!r}, expected 'engine'"
        )
        _lies(side, metric, "transfer_latency_s", 0.0, monotonic() - begin)
