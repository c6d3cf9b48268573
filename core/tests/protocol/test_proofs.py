"""When pages may be reused: never while a byte may still come, and always once it is proven that none can."""

from __future__ import annotations

from core.tests.protocol.support import Bench, at_rest
from kv_core.contract.enums import FailureCode
from kv_core.protocol import effects as fx


def test_metadata_that_crosses_a_refusal_is_never_taken_up_by_the_next_room_of_that_number():
    bench = Bench()
    prefill, decode = bench.pair()
    gone = prefill.open(5)
    prefill.abort(gone)  # nobody had asked for the room: a tombstone
    prefill.clear(gone)
    room = decode.open(5)
    decode.init(room)
    decode.offer(room, 7, 8)  # the announcement and the pages travel together
    bench.pump()
    assert room.failure is not None
    assert room.failure.code is FailureCode.ABORTED_REMOTE
    assert room.release_safe
    again = prefill.open(5)
    prefill.init(again, 2)
    prefill.send(again, 1, 2)
    assert not prefill.chunks, "pages that decode has released would be written"
    prefill.clear(again)
    decode.clear(room)
    bench.pump()


def test_metadata_that_crosses_the_failure_of_an_announced_room_is_dropped():
    bench = Bench()
    prefill, decode = bench.pair()
    first = prefill.open(5)
    room = decode.open(5)
    decode.init(room)
    bench.pump()
    decode.offer(room, 7, 8)
    metadata = bench.wire.popleft()
    prefill.abort(first)
    bench.pump()
    assert room.release_safe
    bench.deliver(*metadata)
    prefill.clear(first)
    again = prefill.open(5)
    prefill.init(again, 2)
    prefill.send(again, 1, 2)
    assert not prefill.chunks
    assert prefill.machine.snapshot()["early_rooms"] == 0


def test_pages_are_not_released_while_their_digests_and_auxiliary_rows_are_being_worked_on():
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = prefill.open(5), decode.open(5)
    prefill.init(source, 1, aux=3)
    decode.init(target)
    decode.offer(target, 7, aux=4)
    bench.pump()
    prefill.send(source, 1)
    prefill.land(aux_rows=(b"row",))
    bench.pump()
    (job,) = decode.wants(fx.VerifyDigests)
    decode.abort(target)
    assert not target.release_safe, "the job may still write the auxiliary row"
    decode.do(decode.machine.on_verified, job.room, job.link, None)
    assert target.release_safe
    assert target.failure is not None
    assert target.failure.code is FailureCode.ABORTED_LOCAL
    bench.pump()
    decode.clear(target)
    prefill.clear(source)
    bench.pass_time(2)
    at_rest(prefill, decode)
