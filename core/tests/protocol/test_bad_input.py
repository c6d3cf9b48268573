"""Each wrong call and each wrong word of a peer ends in one failed room with a reason; no other room notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from core.tests.protocol.support import SHORT, Bench, Rank, at_rest, pages
from core.tests.simulation.memory import LAYERS, SIZES
from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import FailureCode, KVPoll, Side
from kv_core.protocol import effects as fx
from kv_core.protocol import messages as msg
from kv_core.protocol.nodes import ProbeResult, RouteError
from kv_core.protocol.rooms import Offer, Room


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def pair(bench: Bench) -> Iterator[tuple[Rank, Rank]]:
    """Two ranks with a bystander: a room that nothing happens to, and that has to end well."""
    prefill, decode = bench.pair()
    source, target = bench.bound(prefill, decode, 77, 40, 41)
    yield prefill, decode
    assert [r.failure for r in (source, target)] == [None, None], "the bystander noticed"
    prefill.chunks = type(prefill.chunks)(c for c in prefill.chunks if not c.room.ended)
    prefill.send(source, 1, 2)
    while prefill.chunks:
        prefill.land()
    bench.pump()
    assert [r.poll for r in (source, target)] == [KVPoll.Success] * 2


def failed(room: Room, code: FailureCode, *words: str) -> None:
    assert room.failure is not None
    assert room.failure.code is code, room.failure
    for word in words:
        assert word in room.failure.message
    assert room.poll is KVPoll.Failed


@pytest.mark.parametrize("number", [-1, -(2**63), 2**63, 2**64, 2**200, True, False, None, "17", 1.5, b"x", [1], object()], ids=lambda n: str(n)[:12])  # fmt: skip
def test_numbers_that_are_none(pair: tuple[Rank, Rank], number: object):
    for rank in pair:
        room = rank.open(number)
        failed(room, FailureCode.INVALID_REQUEST, "bootstrap_room must be an int from 0 to 2**63-1")
        assert room.release_safe
        assert len(rank.ends(room)) == 1
        rank.init(room)
        rank.abort(room)
        rank.clear(room)
        assert len(rank.ends(room)) == 1


@pytest.mark.parametrize("number", [0, 1, 2**31, 2**53 + 1, 2**63 - 1])
def test_numbers_up_to_the_greatest_work(bench: Bench, number: int):
    prefill, decode = bench.pair()
    source, target = bench.bound(prefill, decode, number)
    prefill.send(source, 1, 2)
    prefill.land()
    bench.pump()
    assert [r.poll for r in (source, target)] == [KVPoll.Success] * 2


def test_a_duplicate_fails_and_the_live_room_does_not_notice(bench: Bench, pair: tuple[Rank, Rank]):
    prefill, decode = pair
    source, target = bench.bound(prefill, decode)
    for rank, live in ((prefill, source), (decode, target)):
        double = rank.open(5)
        failed(double, FailureCode.DUPLICATE_ROOM, "room 5", "is live")
        rank.abort(double)
        rank.clear(double)
        rank.init(double)
        assert rank.machine.table[5] is live
        assert live.failure is None
    prefill.send(source, 1, 2)
    prefill.land()
    bench.pump()
    assert [r.poll for r in (source, target)] == [KVPoll.Success] * 2


def test_a_number_may_be_used_again_once_it_is_cleared_and_not_before(bench: Bench, pair: tuple[Rank, Rank]):
    prefill, decode = pair
    for _ in range(3):
        source, target = bench.bound(prefill, decode)
        prefill.send(source, 1, 2)
        prefill.land()
        bench.pump()
        for rank, room in ((prefill, source), (decode, target)):
            failed(rank.open(5), FailureCode.DUPLICATE_ROOM, "has ended", "call clear()")
            rank.clear(room)
        assert [r.poll for r in (source, target)] == [KVPoll.Success] * 2


def test_more_rooms_than_allowed(bench: Bench):
    prefill = bench.prefill(settings=TransferConfig(max_rooms=3))
    rooms = [prefill.open(number) for number in range(4)]
    failed(rooms[3], FailureCode.OVERLOADED, "max_rooms")
    assert rooms[3].failure is not None
    assert rooms[3].failure.retryable
    prefill.clear(rooms[0])
    assert prefill.open(9).failure is None


def test_a_room_that_prefill_never_opens(bench: Bench):
    _, decode = bench.pair()
    room = decode.open(5)
    decode.init(room)
    decode.offer(room, 7)
    bench.now += SHORT.waiting_timeout_s + 0.5
    decode.do(decode.machine.tick)
    failed(room, FailureCode.TIMEOUT, "waiting_timeout_s=8")


def test_a_room_that_decode_never_asks_for(bench: Bench):
    prefill, _ = bench.pair()
    room = prefill.open(5)
    prefill.init(room, 2)
    bench.pass_time(SHORT.bootstrap_timeout_s + 0.5)
    failed(room, FailureCode.TIMEOUT, "bootstrap_timeout_s=10")
    assert room.release_safe


def test_init_that_never_comes(bench: Bench):
    _, decode = bench.pair()
    room = decode.open(5)
    bench.pass_time(SHORT.bootstrap_timeout_s + 0.5)
    failed(room, FailureCode.TIMEOUT, "init() was not called")
    assert room.failure is not None
    assert room.failure.side is Side.DECODE


Call = Callable[[Rank, Rank, Room, Room], object]
INIT: Call = lambda p, d, s, t: p.init(s, 2)  # noqa: E731
ASK: Call = lambda p, d, s, t: d.init(t)  # noqa: E731
NAME: Call = lambda p, d, s, t: d.offer(t, 7, 8)  # noqa: E731
WRONG_CALLS: dict[str, tuple[list[Call], str]] = {
    "send before init": ([lambda p, d, s, t: p.send(s, 1)], "send() came before init()"),
    "init twice": ([INIT, INIT], "init() was called twice"),
    "negative count": ([lambda p, d, s, t: p.init(s, -1)], "init(): a room can't have -1 pages"),
    "send too much": ([INIT, lambda p, d, s, t: p.send(s, 1, 2, 3)], "beyond the 2 pages"),
    "send too often": ([INIT, lambda p, d, s, t: p.send(s, 1, 2), lambda p, d, s, t: p.send(s, 3)], "after all 2 announced pages"),
    "no such layer": ([INIT, lambda p, d, s, t: p.send(s, 1, 2, layers=range(7, 9))], "none of this rank's layers"),
    "a step": ([INIT, lambda p, d, s, t: p.send(s, 1, 2, layers=range(0, 3, 2))], "step 1"),
    "layers apart": (
        [INIT, lambda p, d, s, t: p.send(s, 1, layers=range(1)), lambda p, d, s, t: p.send(s, 1)], "same page",
    ),
    "decode: init twice": ([ASK, ASK], "init() was called twice"),
    "decode: metadata before init": ([NAME], "send_metadata() came before init()"),
    "decode: metadata twice": ([ASK, NAME, NAME], "send_metadata() was called twice"),
    "decode: bad call": ([lambda p, d, s, t: d.do(d.machine.invalid, t, "must be one-dimensional")], "one-dimensional"),
}  # fmt: skip


@pytest.mark.parametrize("asked", [False, True], ids=["alone", "asked"])
@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_calls(bench: Bench, pair: tuple[Rank, Rank], name: str, asked: bool):
    prefill, decode = pair
    calls, words = WRONG_CALLS[name]
    source, target = prefill.open(5), decode.open(5)
    if asked and not name.startswith("decode"):
        decode.init(target)
        decode.offer(target, 7, 8)
        bench.pump()
    for call in calls:
        call(prefill, decode, source, target)
    bench.pump()
    culprit, other = (target, source) if name.startswith("decode") else (source, target)
    failed(culprit, FailureCode.INVALID_REQUEST, words)
    assert culprit.failure is not None
    assert culprit.failure.side is Side.of(culprit.role)
    if asked and not name.startswith("decode"):
        assert other.failure is not None
        assert other.failure.message == culprit.failure.message
    assert culprit.release_safe
    assert not prefill.chunks or not asked or all(prefill.claim() is None for _ in range(len(prefill.chunks)))


def test_calls_after_the_end_and_after_clear_change_nothing(bench: Bench, pair: tuple[Rank, Rank]):
    prefill, decode = pair
    source, target = bench.bound(prefill, decode)
    prefill.send(source, 1, 2)
    prefill.land()
    bench.pump()
    for _ in range(2):
        prefill.init(source, 5)
        prefill.send(source, 9, 9, 9)
        decode.init(target)
        decode.offer(target, 1)
        prefill.abort(source)
        decode.abort(target)
        for rank, room in ((prefill, source), (decode, target)):
            assert (room.poll, room.failure, len(rank.ends(room))) == (KVPoll.Success, None, 1)
            rank.clear(room)
    assert not prefill.chunks


def test_a_chunk_of_nothing_is_nothing_unless_nothing_was_announced(bench: Bench, pair: tuple[Rank, Rank]):
    prefill, decode = pair
    source, _ = bench.bound(prefill, decode)
    prefill.send(source)
    assert not prefill.chunks
    assert source.failure is None


def test_zero_pages(bench: Bench, pair: tuple[Rank, Rank]):
    prefill, decode = pair
    source, target = prefill.open(5), decode.open(5)
    decode.init(target)
    decode.do(decode.machine.offer, target, Offer(pages(), {}, 3, 12))
    bench.pump()
    assert source.decode_prefix_len == 12
    prefill.init(source, 0, aux=1)
    prefill.send(source)
    (chunk,) = prefill.chunks
    assert (chunk.local.size, chunk.aux) == (0, (1, 3))
    prefill.land()
    bench.pump()
    assert [r.poll for r in (source, target)] == [KVPoll.Success] * 2


def test_a_hundred_thousand_pages(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SIZES, "kv", 200_000)
    prefill, decode = bench.pair()
    local = np.arange(100_000, dtype=np.uint64)
    remote = local[::-1].copy()
    source, target = prefill.open(5), decode.open(5)
    prefill.init(source, 100_000)
    decode.init(target)
    decode.do(decode.machine.offer, target, Offer(remote))
    bench.pump()
    for part in np.array_split(local, 5):
        prefill.do(prefill.machine.send, source, part, {}, None, None)
    for i, chunk in enumerate(prefill.chunks):
        np.testing.assert_array_equal(chunk.remote, remote)
        assert (chunk.start, chunk.local.size) == (20_000 * i, 20_000)
    while prefill.chunks:
        prefill.land()
    bench.pump()
    assert [r.poll for r in (source, target)] == [KVPoll.Success] * 2


@pytest.mark.parametrize("first", ["init", "metadata"])
@pytest.mark.parametrize(("announced", "named"), [(2, 3), (3, 2), (0, 1), (1, 0)])
def test_unequal_counts(bench: Bench, pair: tuple[Rank, Rank], first: str, announced: int, named: int):
    prefill, decode = pair
    source, target = prefill.open(5), decode.open(5)
    if first == "init":
        prefill.init(source, announced)
    decode.init(target)
    decode.offer(target, *range(named))
    bench.pump()
    if first != "init":
        prefill.init(source, announced)
        bench.pump()
    for room in (source, target):
        failed(room, FailureCode.INVALID_REQUEST, f"announced {announced} pages", f"named {named}", "decode_prefix_len")
        assert room.release_safe


OFFERS: dict[str, Offer] = {
    "one too far": Offer(pages(0, SIZES["kv"])),
    "far away": Offer(pages(2**64 - 1, 0)),
    "a state too far": Offer(pages(0, 1), {"mamba": pages(SIZES["mamba"])}),
    "a state that is not there": Offer(pages(0, 1), {"unheard_of": pages(0)}),
    "a row too far": Offer(pages(0, 1), {}, SIZES["aux"]),
    "a row far away": Offer(pages(0, 1), {}, 2**63 - 1),
}


@pytest.mark.parametrize("name", OFFERS)
def test_a_peer_that_names_pages_that_it_does_not_have(bench: Bench, pair: tuple[Rank, Rank], name: str):
    prefill, decode = pair
    source, target = prefill.open(5), decode.open(5)
    prefill.init(source, 2, aux=1)
    prefill.send(source, 1, 2)
    decode.init(target)
    decode.do(decode.machine.offer, target, OFFERS[name])
    bench.pump()
    for room in (source, target):
        failed(room, FailureCode.INVALID_REQUEST, "can't be", "has ")
        assert room.failure is not None
        assert room.failure.side is Side.DECODE
        assert room.release_safe
    assert not prefill.chunks


def test_a_peer_that_names_more_pages_than_allowed(bench: Bench):
    settings = TransferConfig(max_indices=10)
    prefill, decode = bench.pair(settings=settings)
    source, target = bench.bound(prefill, decode, 5, *range(11))
    for room in (source, target):
        failed(room, FailureCode.INVALID_REQUEST, "max_indices is 10")


def test_a_peer_whose_indices_are_cut_short(bench: Bench, pair: tuple[Rank, Rank]):
    prefill, decode = pair
    source, target = prefill.open(5), decode.open(5)
    decode.init(target)
    bench.pump()
    (session,) = decode.machine.peers.values()
    session.link.push(msg.Metadata(5, target.life, msg.WireIndices(3, b"12345"), {}, None, 0, 1))
    decode.machine._dirty[session] = None
    decode.do(decode.machine.tick)
    bench.pump()
    failed(source, FailureCode.INVALID_REQUEST, "4 or 8 bytes each")
    assert target.failure is not None


def test_states_and_rows_that_do_not_fit_together(bench: Bench, pair: tuple[Rank, Rank]):
    prefill, decode = pair
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (Offer(pages(1), {"mamba": pages(1, 2)}), {}, "0 of 2 items of state 'mamba'"),
        (Offer(pages(1), {"mamba": pages(1)}), {"mamba": pages(1, 2)}, "2 items of state 'mamba', but decode named 1"),
        (Offer(pages(1)), {"mamba": pages(1)}, "decode named 0"),
        (Offer(pages(1), {}, 3), {}, "init() was given no aux_index"),
    ]
    for number, (offer, states, words) in enumerate(cases, 10):
        source, target = prefill.open(number), decode.open(number)
        prefill.init(source, 1)
        decode.init(target)
        decode.do(decode.machine.offer, target, offer)
        bench.pump()
        prefill.send(source, 1, **states)
        bench.pump()
        for room in (source, target):
            failed(room, FailureCode.INVALID_REQUEST, words)


def test_layer_by_layer(bench: Bench, pair: tuple[Rank, Rank]):
    prefill, decode = pair
    source, target = bench.bound(prefill, decode, 5, 3, 4, 5)
    for layer in LAYERS:
        prefill.send(source, 1, 2, layers=range(layer, layer + 1))
    for layer in LAYERS:
        assert source.phase.value == "ready"
        prefill.send(source, 9, layers=range(layer, layer + 1))
    assert [chunk.remote.tolist() for chunk in prefill.chunks] == [[3, 4, 5]] * 6
    assert [(chunk.start, chunk.local.size) for chunk in prefill.chunks] == [(0, 2)] * 3 + [(2, 1)] * 3
    assert [chunk.start for chunk in prefill.chunks] == [0] * 3 + [2] * 3
    while prefill.chunks:
        assert not target.ended
        prefill.land()
        bench.pump()
    assert [r.poll for r in (source, target)] == [KVPoll.Success] * 2


# -- words of a peer that come at the wrong time -----------------------------------------------------------------------

OUT_OF_TURN: list[Callable[[Room], msg.Message]] = [
    lambda t: msg.Bound(5, t.life, 9), lambda t: msg.Done(5, t.life, 9, 2, 1, 0.0, "core", 1, [], []),
    lambda t: msg.Quiesced(5, t.life), lambda t: msg.SessionQuiesced(2**62), lambda t: msg.Lease([t.life, 999]),
    lambda t: msg.Announce(5, t.life), lambda t: msg.Concluded(5, t.life, None), lambda t: msg.Bound(5, 12_345, 9),
]  # fmt: skip


@pytest.mark.parametrize("say", OUT_OF_TURN, ids=lambda say: type(say(Room(None, 5, 1, "", 0.0))).__name__)  # type: ignore[arg-type]
@pytest.mark.parametrize("phase", ["ready", "offered", "moving"])
def test_decode_hears_things_out_of_turn(bench: Bench, pair: tuple[Rank, Rank], say: Any, phase: str):
    prefill, decode = pair
    target = decode.open(5)
    decode.init(target)
    bench.pump()
    if phase != "ready":
        decode.offer(target, 7, 8)
    source = prefill.open(5) if phase == "moving" else None
    bench.pump()
    assert target.phase.value == phase
    (session,) = prefill.machine.peers.values()
    prefill.machine._push(session, say(target))
    prefill.do(prefill.machine.tick)
    bench.pump()
    if target.failure is not None:
        assert target.failure.code is FailureCode.INTEGRITY, "a false Done"
    else:
        assert not target.ended
        if source is None:
            source = prefill.open(5)
        if phase == "ready":
            decode.offer(target, 7, 8)
        prefill.init(source, 2)
        bench.pump()
        prefill.send(source, 1, 2)
        prefill.land(next(c for c in [prefill.claim()] if c is not None))
        bench.pump()
        if not isinstance(say(target), msg.Bound | msg.Done):
            assert target.poll is KVPoll.Success
    decode.clear(target)
    if source is not None:
        prefill.clear(source)
    bench.pump()


def test_prefill_hears_of_lives_that_it_does_not_know(bench: Bench, pair: tuple[Rank, Rank]):
    prefill, decode = pair
    failure = msg.WireFailure("queued", "timeout", "x", "decode", True, "", "")
    for message in (
        msg.Metadata(5, 777, msg.WireIndices.of(pages(1)), {}, None, 0, 1), msg.Abort(5, 777, failure),
        msg.Concluded(5, 777, None), msg.Concluded(5, 777, failure), msg.Lease([777]), msg.Quiesced(5, 777),
        msg.Bound(5, 777, 1), msg.Failed(5, 777, failure, True), msg.SessionQuiesced(7),
    ):  # fmt: skip
        (session,) = decode.machine.peers.values()
        decode.machine._push(session, message)
        decode.do(decode.machine.tick)
        bench.pump()
    source = prefill.open(5)
    assert source.failure is None
    assert source.phase.value == "open"
    prefill.clear(source)


# -- bootstrap ---------------------------------------------------------------------------------------------------------


def test_a_bootstrap_server_that_is_absent_until_the_deadline(bench: Bench):
    decode = bench.decode()
    bench.route = RouteError("connection refused by boot:8998")
    room = decode.open(5)
    decode.init(room)
    bench.pass_time(SHORT.bootstrap_timeout_s + 0.5)
    failed(room, FailureCode.TIMEOUT, "bootstrap_timeout_s=10", "connection refused by boot:8998")
    assert room.release_safe
    decode.clear(room)
    bench.pass_time(25)
    at_rest(decode)
    assert not decode.machine.nodes
    assert not decode.machine._timers._when


def test_a_bootstrap_server_that_comes_up_late(bench: Bench):
    prefill, decode = bench.prefill(), bench.decode()
    good, bench.route = bench.route, RouteError("0 of 1 ranks have registered")
    source, target = prefill.open(5), decode.open(5)
    decode.init(target)
    bench.pass_time(5)
    bench.route = good
    bench.pass_time(3)
    assert (source.failure, target.failure) == (None, None)
    assert target.phase.value == "ready"


def test_a_bootstrap_server_of_another_topology(bench: Bench):
    decode = bench.decode()
    bench.route = RouteError("another topology is registered there", fatal=True)
    room = decode.open(5)
    decode.init(room)
    bench.pump()
    failed(room, FailureCode.INCOMPATIBLE, "another topology")


def test_a_data_parallel_rank_that_is_not_there(bench: Bench):
    bench.prefill()
    decode = bench.decode()
    room = decode.open(5)
    decode.do(decode.machine.init, room, 3)
    bench.pump()
    failed(room, FailureCode.INCOMPATIBLE, "prefill_dp_rank 3")


def test_a_bootstrap_server_that_dies_takes_no_session_with_it(bench: Bench):
    prefill, decode = bench.pair()
    source, target = bench.bound(prefill, decode)
    waiting = decode.do(decode.machine.open, 6, "other:8998")
    decode.init(waiting)
    decode.wants(fx.Resolve)
    for _ in range(2):
        decode.do(decode.machine.on_probe, "other:8998", ProbeResult(error="refused", refused=True))
        decode.do(decode.machine.on_probe, "boot:8998", ProbeResult(error="refused", refused=True))
    failed(waiting, FailureCode.PEER_LOST, "other:8998")
    assert (source.failure, target.failure) == (None, None)
    assert len(decode.wants(fx.Unwatch)) == 1


def test_a_node_is_watched_once_and_forgotten_when_nobody_needs_it(bench: Bench):
    prefill, decode = bench.pair()
    bench.bound(prefill, decode)
    assert len(decode.wants(fx.Watch)) == 1
    decode.do(decode.machine.on_connection_refused, prefill.endpoint)
    bench.dead.add("p.1")
    for _ in range(12):
        bench.pass_time(2)
        decode.do(decode.machine.on_probe, "boot:8998", ProbeResult({(0, 0, 0, 0): "p.1"}))
    (room,) = (r for r in decode.machine.live.values())
    decode.do(decode.machine.on_proven_dead, "p.1")
    assert room.release_safe
    bench.pass_time(25)
    assert not decode.machine.nodes
    assert len(decode.wants(fx.Unwatch)) == 1
