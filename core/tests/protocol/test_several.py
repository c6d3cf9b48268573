"""Rooms with several sources or several destinations: all of them succeed, or all of them hear the one reason."""

from __future__ import annotations

from core.tests.protocol.support import SHORT, Bench, Rank, at_rest
from kv_core.contract.enums import FailureCode
from kv_core.protocol import messages as msg
from kv_core.protocol.rooms import Room


def two_destinations() -> tuple[Bench, Rank, list[Rank]]:
    bench = Bench()
    prefill = bench.prefill()
    decodes = [bench.decode(f"d{i}.1", destinations=2) for i in range(2)]
    for decode in decodes:
        bench.meet(decode)
    return bench, prefill, decodes


def ask(decode: Rank, number: int = 5, *items: int) -> Room:
    room = decode.open(number)
    decode.init(room)
    if items:
        decode.offer(room, *items)
    return room


def test_one_source_and_two_destinations():
    bench, prefill, decodes = two_destinations()
    source = prefill.open(5)
    prefill.init(source, 2)
    targets = [ask(decodes[0], 5, 3, 4)]
    bench.pump()
    assert source.phase.value == "open", "both have to name their pages first"
    targets.append(ask(decodes[1], 5, 5, 6))
    bench.pump()
    prefill.send(source, 1, 2)
    assert sorted(chunk.remote.tolist() for chunk in prefill.chunks) == [[3, 4], [5, 6]]
    prefill.land()
    bench.pump()
    assert not any(room.ended for room in targets)
    prefill.land()
    bench.pump()
    assert [room.phase.value for room in (source, *targets)] == ["success"] * 3
    for rank, room in zip((prefill, *decodes), (source, *targets), strict=True):
        rank.clear(room)
    bench.pass_time(1)
    at_rest(prefill, *decodes, but="tombstones")


def test_a_destination_that_comes_after_the_other_one_has_failed_hears_why():
    bench, prefill, decodes = two_destinations()
    source = prefill.open(5)
    prefill.init(source, 2)
    first = ask(decodes[0])
    bench.pump()
    decodes[0].abort(first, "no pages left")
    bench.pump()
    assert source.failure is not None
    prefill.clear(source)
    second = ask(decodes[1], 5, 5, 6)
    bench.pump()
    assert second.failure is not None
    assert second.failure.message == source.failure.message == "no pages left"
    assert second.release_safe
    decodes[0].clear(first)
    decodes[1].clear(second)
    again = prefill.open(5)
    prefill.init(again, 1)
    rooms = [ask(decode, 5, 7) for decode in decodes]
    bench.pump()
    assert [room.failure for room in (again, *rooms)] == [None] * 3
    assert again.phase.value == "ready"


def test_prefill_opens_after_one_of_two_destinations_has_given_up():
    bench, prefill, decodes = two_destinations()
    first, second = ask(decodes[0]), ask(decodes[1], 5, 5, 6)
    bench.pump()
    decodes[0].abort(first, "no pages left")
    bench.pump()
    assert second.failure is None
    source = prefill.open(5)
    bench.pump()
    for room in (source, second):
        assert room.failure is not None
        assert room.failure.code is FailureCode.ABORTED_REMOTE
        assert room.failure.message == "no pages left"
        assert room.release_safe


def test_a_destination_that_gives_up_before_init_ends_the_room_for_the_other_one_too():
    bench, prefill, decodes = two_destinations()
    second = ask(decodes[1], 5, 5, 6)
    bench.pump()
    first = decodes[0].open(5)
    decodes[0].abort(first, "changed my mind")
    bench.pump()
    source = prefill.open(5)
    bench.pump()
    for room in (source, second):
        assert room.failure is not None
        assert room.failure.message == "changed my mind"


def test_a_destination_that_offers_waits_longer_for_the_other_than_one_lease():
    bench, prefill, decodes = two_destinations()
    source = prefill.open(5)
    prefill.init(source, 1)
    first, second = ask(decodes[0], 5, 3), ask(decodes[1])
    bench.pass_time(SHORT.lease_s * 1.5)
    decodes[1].offer(second, 4)
    bench.pump()
    assert [room.failure for room in (source, first, second)] == [None] * 3
    assert source.phase.value == "ready"


def test_a_destination_that_never_comes_ends_the_room_for_all():
    bench, prefill, decodes = two_destinations()
    source = prefill.open(5)
    first = ask(decodes[0], 5, 3)
    bench.pass_time(SHORT.waiting_timeout_s + 1)
    for room in (source, first):
        assert room.failure is not None
        assert room.failure.code is FailureCode.TIMEOUT
    assert first.release_safe


def two_sources() -> tuple[Bench, list[Rank], Rank]:
    bench = Bench()
    prefills = [bench.prefill(f"p{i}.1") for i in range(2)]
    decode = bench.decode()
    bench.meet(decode)
    return bench, prefills, decode


def test_two_sources_and_one_destination():
    bench, prefills, decode = two_sources()
    sources = [prefill.open(5) for prefill in prefills]
    for prefill, source in zip(prefills, sources, strict=True):
        prefill.init(source, 2)
    target = ask(decode, 5, 3, 4)
    bench.pump()
    for prefill, source in zip(prefills, sources, strict=True):
        assert not target.ended
        prefill.send(source, 1, 2)
        prefill.land()
        bench.pump()
    assert [room.phase.value for room in (target, *sources)] == ["success"] * 3


def test_one_of_two_sources_fails_while_the_other_writes():
    bench, prefills, decode = two_sources()
    sources = [prefill.open(5) for prefill in prefills]
    for prefill, source in zip(prefills, sources, strict=True):
        prefill.init(source, 2)
    target = ask(decode, 5, 3, 4)
    bench.pump()
    prefills[0].send(sources[0], 1, 2)
    chunk = prefills[0].claim()
    assert chunk is not None
    prefills[1].abort(sources[1], "out of memory")
    bench.pump()
    for room in (target, sources[0]):
        assert room.failure is not None
        assert (room.failure.code, room.failure.message) == (FailureCode.ABORTED_REMOTE, "out of memory")
    assert not target.release_safe, "the other source still writes"
    prefills[0].do(prefills[0].machine.chunk_quiescent, chunk)
    bench.pump()
    assert target.release_safe


def test_a_source_that_is_lost_ends_the_room_for_the_other_one_too():
    bench, prefills, decode = two_sources()
    sources = [prefill.open(5) for prefill in prefills]
    target = ask(decode, 5, 3, 4)
    bench.pump()
    bench.dead.add("p0.1")
    decode.do(decode.machine.on_connection_refused, prefills[0].endpoint)
    bench.pump()
    for room in (target, sources[1]):
        assert room.failure is not None
        assert room.failure.code is FailureCode.PEER_LOST
    assert not target.release_safe
    (entry,) = decode.machine.snapshot()["quarantined"]
    assert len(entry["missing"]) == 1
    assert "p0.1" in entry["missing"][0]


def test_a_room_that_never_reached_its_announcement_is_told_to_the_source_that_is_there():
    bench, prefills, decode = two_sources()
    decode.do(decode.machine.on_connection_lost, prefills[1].endpoint)  # suspect: no new rooms for now
    sources = [prefill.open(5) for prefill in prefills]
    target = ask(decode, 5, 3, 4)
    assert target.phase.value == "open"
    decode.abort(target, "never mind")
    bench.pump()
    assert target.release_safe
    for source in sources:
        assert source.failure is not None
        assert source.failure.message == "never mind"
    assert not prefills[0].messages(msg.Bound)
