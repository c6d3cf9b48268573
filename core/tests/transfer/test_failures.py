"""Exceptions everywhere, failures with and without quiescence, and exactly one conclusion for each chunk."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from core.tests.transfer.support import ALL, DoubleTransport, Memory, bench, quiescent_error, same, settings, until
from kv_core.contract.enums import Capability, TransferState
from kv_core.contract.failures import NotSupported, TransportError
from kv_core.protocol.effects import AddPeer, FencePeer, RemovePeer, SubmitChunk
from kv_core.protocol.lifecycle import Phase
from kv_core.runtime.process_proof import describe_process

LIVES = """
import json, sys
from kv_core.runtime.process_proof import describe_process
print(json.dumps(describe_process()), flush=True)
sys.stdin.read()
"""


class Surprise(Exception):
    """Something that no transport raises on purpose."""


def test_an_error_that_vouches_for_quiescence_fails_the_room_at_once():
    with bench() as b:
        peer = b.peer("decode")
        b.transport.raising["submit"] = lambda _peer: quiescent_error()
        chunk = b.submit(peer, [1], [1])
        until(lambda: b.failure(chunk))
        assert b.failure(chunk) == ("TransportError: the fabric refused it", True)
        b.rest()
        b.transport.raising.clear()
        again = b.submit(peer, [1], [1])
        until(lambda: b.has_landed(again))


@pytest.mark.parametrize("error", [Surprise("what?"), OSError(5, "I/O error"), SystemExit(3), TransportError("lost")])
def test_any_other_error_of_submit_is_not_quiescent_and_is_counted(error):
    with bench() as b:
        peer = b.peer("decode")
        b.transport.raising["submit"] = lambda _peer: error
        chunk = b.submit(peer, [1], [1])
        until(lambda: b.failure(chunk))
        message, quiescent = b.failure(chunk) or ("", True)
        assert message.startswith(type(error).__name__ + ": ")
        assert not quiescent
        assert b.engine.snapshot()["lost_submissions"] == 1
        assert b.engine.snapshot()["active_chunks"] == 0
        b.transport.raising.clear()
        again = b.submit(peer, [1], [1])
        until(lambda: b.has_landed(again))
        assert not b.engine.close(1.0)
        assert id(chunk) not in b.sink.still
        assert "deregister_memory" not in b.transport.calls


def test_a_submit_that_returns_no_transfer_is_a_lost_submission():
    with bench() as b:
        peer = b.peer("decode")
        b.transport.submit = lambda prepared, batch: None  # type: ignore[method-assign,assignment,return-value]
        chunk = b.submit(peer, [1], [1])
        until(lambda: b.failure(chunk))
        assert b.failure(chunk) == ("TypeError: submit() returned None, which is no Transfer", False)


def test_the_rest_of_a_group_is_waited_for_after_a_failure():
    config = settings(max_batch_descriptors=4)
    transport = DoubleTransport(config, auto=False)
    with bench(transport, config=config) as b:
        chunk = b.submit(b.peer("decode"), [1, 2, 3], [1, 2, 3])
        until(lambda: len(transport.posted) == 3)
        transport.fail(transport.posted[1], "no route", quiescent=True)
        until(lambda: b.failure(chunk))
        assert b.failure(chunk) == ("no route", False)
        transport.land(transport.posted[0])
        until(lambda: b.engine.snapshot()["outstanding_transfers"] == 1)
        assert id(chunk) not in b.sink.still
        transport.land(transport.posted[2])
        until(lambda: id(chunk) in b.sink.still)
        b.rest()


def test_a_failed_transfer_stays_outstanding_until_it_is_quiescent():
    transport = DoubleTransport(auto=False)
    with bench(transport) as b:
        chunk = b.submit(b.peer("decode"), [1], [1])
        until(lambda: transport.posted)
        transport.fail(transport.posted[0], "timed out", quiescent=False)
        until(lambda: b.failure(chunk))
        assert b.failure(chunk) == ("timed out", False)
        assert b.engine.snapshot()["outstanding_transfers"] == 1
        assert not transport.posted[0].released
        transport.copy(transport.posted[0])  # it writes after its error
        transport.settle(transport.posted[0])
        until(lambda: id(chunk) in b.sink.still)
        assert transport.posted[0].released
        b.rest()


def test_a_failed_transfer_to_a_process_that_is_proven_dead_is_quiescent():
    transport = DoubleTransport(auto=False)
    with subprocess.Popen([sys.executable, "-c", LIVES], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        with bench(transport) as b:
            doomed, other = b.stranger("doomed"), b.stranger("other")
            b.engine.put(AddPeer(doomed.key, b"", doomed.layout, told))
            b.engine.put(AddPeer(other.key, b"", other.layout, describe_process()))
            chunk, alike = b.submit(doomed, [1], [1]), b.submit(other, [2], [2])
            until(lambda: len(transport.posted) == 2)
            for posted in transport.posted:
                transport.fail(posted, "timed out", quiescent=False)
            until(lambda: b.failure(chunk) and b.failure(alike))
            assert (b.failure(chunk), b.sink.still) == (("timed out", False), set())
            process.kill()
            process.wait()
            until(lambda: id(chunk) in b.sink.still)
            assert id(alike) not in b.sink.still
            assert [posted.released for posted in transport.posted] == [
                posted.peer == doomed.key for posted in transport.posted
            ]
            for posted in transport.posted:
                if not posted.released:
                    transport.settle(posted)
            b.rest()


def test_a_transfer_that_was_given_up_and_lands_after_all_is_quiescent():
    transport = DoubleTransport(auto=False)
    with bench(transport) as b:
        chunk = b.submit(b.peer("decode"), [1], [1])
        until(lambda: transport.posted)
        transport.fail(transport.posted[0], "timed out", quiescent=False)
        until(lambda: b.failure(chunk))
        transport.land(transport.posted[0])
        until(lambda: id(chunk) in b.sink.still)
        assert not b.has_landed(chunk)
        b.rest()
        assert [name for name, about, _ in b.sink.events if about is chunk] == ["failed", "quiescent"]


def test_an_exception_of_progress_fails_the_room_it_belongs_to_and_no_other():
    transport = DoubleTransport(auto=False)
    with bench(transport) as b:
        peer = b.peer("decode")
        good, bad, late = (b.submit(peer, [k], [k]) for k in range(3))
        until(lambda: len(transport.posted) == 3)
        poisoned = transport.posted[1]
        transport.raising["progress"] = lambda asked: Surprise("engine on fire") if poisoned in asked else None
        transport.land(transport.posted[0])
        until(lambda: b.has_landed(good))
        until(lambda: b.failure(bad))
        assert b.failure(bad) == ("Surprise: engine on fire", False)
        transport.land(transport.posted[2])
        until(lambda: b.has_landed(late))
        transport.raising.clear()
        transport.land(poisoned)
        until(lambda: id(bad) in b.sink.still)
        b.rest()


def test_a_passing_exception_of_progress_fails_nobody():
    transport = DoubleTransport(auto=False)
    once = [Surprise("hiccup")]
    with bench(transport) as b:
        chunks = [b.submit(b.peer("decode"), [k], [k]) for k in range(2)]
        until(lambda: len(transport.posted) == 2)
        transport.raising["progress"] = lambda asked: once.pop() if once and len(asked) > 1 else None
        for transfer in transport.posted:
            transport.land(transfer)
        until(lambda: all(map(b.has_landed, chunks)))
        assert not once
        assert b.engine.health()["kv-transfer"]["exceptions"] == 1


@pytest.mark.parametrize("garbage", [None, 17, ("too", "short")])
def test_progress_that_reports_garbage_is_an_exception_like_any_other(garbage):
    transport = DoubleTransport(auto=False)
    with bench(transport, checked=False) as b:
        chunk = b.submit(b.peer("decode"), [1], [1])
        until(lambda: transport.posted)
        real = transport.progress
        transport.progress = lambda transfers: iter([garbage])  # type: ignore[method-assign]
        until(lambda: b.failure(chunk))
        transport.progress = real  # type: ignore[method-assign]
        transport.land(transport.posted[0])
        until(lambda: id(chunk) in b.sink.still)


@pytest.mark.parametrize("method", ["add_peer", "prepare"])
def test_a_peer_that_can_not_be_prepared_is_reported_and_its_chunks_fail(method):
    with bench() as b:
        b.transport.raising[method] = lambda _peer: OSError(113, "No route to host")
        peer = b.peer("decode")
        until(lambda: b.sink.told("peer_failed"))
        assert b.sink.told("peer_failed") == [(peer.key, "OSError: [Errno 113] No route to host")]
        chunk = b.submit(peer, [1], [1])
        until(lambda: b.failure(chunk))
        assert b.failure(chunk) == ("OSError: [Errno 113] No route to host", True)
        b.transport.raising.clear()
        other = b.submit(b.peer("other"), [1], [1])
        until(lambda: b.has_landed(other))
        b.engine.put(RemovePeer(peer.key))
        until(lambda: b.engine.snapshot()["peers"] == 1)
        assert "remove_peer" in b.transport.calls


def test_a_peer_over_a_fabric_that_is_not_allowed_is_refused_before_anything_is_posted():
    with bench(config=settings(require_transport="rdma")) as b:
        peer = b.peer("decode")
        until(lambda: b.sink.told("peer_refused"))
        ((key, sentence),) = b.sink.told("peer_refused")
        assert key == peer.key
        assert "require_transport asks for 'rdma', and in use to this peer is 'double'" in sentence
        chunk = b.submit(peer, [1], [1])
        until(lambda: b.failure(chunk))
        assert b.failure(chunk) == (sentence, True)
        b.engine.put(RemovePeer(peer.key))
        until(lambda: b.engine.snapshot()["peers"] == 0)
        assert "remove_peer" in b.transport.calls
        assert not b.transport.posted
    with bench(config=settings(require_transport=("rdma", "DOUBLE"))) as b:
        chunk = b.submit(b.peer("decode"), [1], [1])
        until(lambda: b.has_landed(chunk))


def test_a_peer_with_another_layout_is_reported():
    with bench() as b:
        b.peer("decode", page_bytes=128)
        until(lambda: b.sink.told("peer_failed"))
        assert "LayoutMismatch: " in b.sink.told("peer_failed")[0][1]


@pytest.mark.parametrize("method", ["release", "wait", "remove_peer", "deregister_memory", "close"])
def test_exceptions_of_other_calls_are_survived_and_counted(method):
    with bench() as b:
        peer = b.peer("decode")
        b.transport.raising[method] = lambda _argument: Surprise("oh")
        chunk = b.submit(peer, [1], [1])
        until(lambda: b.has_landed(chunk))
        b.engine.put(RemovePeer(peer.key))
        until(lambda: b.engine.snapshot()["peers"] == 0)
        b.engine.close(5.0)
        assert int(str(b.engine.health()["kv-transfer"]["exceptions"])) >= 1


def test_indices_that_do_not_go_together_fail_their_room_only():
    with bench() as b:
        peer = b.peer("decode")
        chunk = b.chunk(peer, [1, 2], [1])
        b.engine.put(SubmitChunk(chunk))
        until(lambda: b.failure(chunk))
        message, quiescent = b.failure(chunk) or ("", False)
        assert message.startswith("ValueError: pages 0 to 2, but decode named 1")
        assert quiescent
        again = b.submit(peer, [1], [1])
        until(lambda: b.has_landed(again))


@pytest.mark.parametrize("method", ["claim", "landed", "failed", "quiescent"])
def test_a_sink_that_raises_does_not_end_the_owner(method):
    transport = DoubleTransport(auto=False)
    with bench(transport, checked=False) as b:
        peer = b.peer("decode")
        real = getattr(b.sink, method)

        def raising(*_args):
            raise Surprise(method)

        setattr(b.sink, method, raising)
        b.submit(peer, [1], [1])
        b.submit(peer, [2], [2])
        if method != "claim":
            until(lambda: len(transport.posted) == 2)
            transport.fail(transport.posted[0], "no", quiescent=False)
            transport.land(transport.posted[1])
            until(lambda: b.engine.snapshot()["outstanding_transfers"] == 1)
            transport.settle(transport.posted[0])
        b.rest()
        setattr(b.sink, method, real)
        chunk = b.submit(peer, [3], [3])
        until(lambda: transport.posted and transport.posted[-1].state is TransferState.PENDING)
        transport.land(transport.posted[-1])
        until(lambda: b.has_landed(chunk))


def test_a_chunk_that_is_not_claimed_is_dropped():
    with bench() as b:
        b.sink.answer = lambda chunk: False
        b.submit(b.peer("decode"), [1], [1])
        until(lambda: b.engine.snapshot()["totals"]["dropped_chunks"] == 1)  # type: ignore[index]
        b.rest()
        assert b.transport.posted == []
        assert [event[0] for event in b.sink.events] == ["peer_met"]


def test_removing_a_peer_ends_what_waits_and_what_is_on_its_way_is_waited_for():
    page = 4 * 64
    config = settings(window_bytes=2 * page)
    transport = DoubleTransport(config, auto=False)
    with bench(transport, config=config) as b:
        peer = b.peer("decode")
        moving = b.submit(peer, range(8), range(8))
        until(lambda: b.engine.snapshot()["outstanding_bytes"] == 2 * page)
        waiting = b.submit(peer, [1], [1])
        posted = len(transport.posted)
        b.engine.put(RemovePeer(peer.key))
        until(lambda: b.failure(moving))
        assert b.failure(moving) == ("the peer decode was removed", False)
        until(lambda: b.failure(waiting))
        assert b.failure(waiting) == ("the peer decode was removed", True)
        until(lambda: "remove_peer" in transport.calls)
        for transfer in transport.posted:
            transport.land(transfer)
        until(lambda: id(moving) in b.sink.still)
        b.rest()
        assert len(transport.posted) == posted
        assert b.engine.snapshot()["peers"] == 0


def test_a_peer_that_was_removed_before_it_was_added_stays_away():
    with bench() as b:
        peer = b.stranger("decode")
        b.engine.put(RemovePeer(peer.key))
        b.engine.put(AddPeer(peer.key, b"", peer.layout))
        other = b.submit(b.peer("other"), [1], [1])
        until(lambda: b.has_landed(other))
        assert list(b.transport.peers) == [("other", 1)]


def test_a_new_generation_takes_over_from_an_old_one():
    transport = DoubleTransport(auto=False)
    with bench(transport) as b:
        old = b.peer("decode", 1)
        first = b.submit(old, [1], [1])
        until(lambda: len(transport.posted) == 1)
        b.engine.put(RemovePeer(old.key))
        new = b.peer("decode", 2)
        second = b.submit(new, [2], [2])
        until(lambda: len(transport.posted) == 2)
        transport.land(transport.posted[1])
        until(lambda: b.has_landed(second))
        assert not b.has_landed(first)
        transport.land(transport.posted[0])
        until(lambda: b.has_landed(first))
        b.rest()


def test_the_transport_knows_one_generation_at_a_time_and_none_of_the_past():
    with bench() as b:
        old, new = b.peer("decode", 1), b.peer("decode", 3)
        until(lambda: list(b.transport.peers) == [new.key], "core removes the one before")
        past = b.peer("decode", 2)
        until(lambda: b.sink.told("peer_failed"))
        assert "of the past" in str(b.sink.told("peer_failed"))
        chunk = b.submit(new, [1], [1])
        until(lambda: b.has_landed(chunk))
        for peer in (old, past, new):
            b.engine.put(RemovePeer(peer.key))
        until(lambda: not b.transport.peers)


def test_fences_are_answered():
    with bench() as b:
        peer = b.peer("prefill")
        b.engine.put(FencePeer(peer.key))
        until(lambda: b.sink.told("fenced"))
        b.transport.raising["fence"] = lambda _peer: NotSupported("fence", "fence")
        b.engine.put(FencePeer(peer.key))
        until(lambda: b.sink.told("fence_failed"))
        assert b.sink.told("fence_failed") == [(peer.key, None)]


class TestRoomsThatEnd:
    """A room that has ended posts nothing more."""

    def test_a_queued_chunk_is_dropped_while_its_peer_is_frozen(self):
        page = 4 * 64
        config = settings(window_bytes=page)
        transport = DoubleTransport(config)
        transport.frozen.add("decode")
        with bench(transport, config=config) as b:
            peer = b.peer("decode")
            b.submit(peer, [1], [1])
            until(lambda: b.engine.snapshot()["outstanding_bytes"] == page)
            waiting = b.submit(peer, [2], [2])
            waiting.room.phase = Phase.FAILED
            until(lambda: b.engine.snapshot()["queued_chunks"] == 0)
            assert not waiting.claimed
            transport.frozen.clear()
            b.rest()

    def test_a_long_chunk_stops_between_its_batches(self):
        page = 4 * 64
        config = settings(window_bytes=2 * page)
        transport = DoubleTransport(config, auto=False)
        with bench(transport, config=config) as b:
            chunk = b.submit(b.peer("decode"), range(8), range(8))
            until(lambda: b.engine.snapshot()["outstanding_bytes"] == 2 * page)
            posted = list(transport.posted)
            chunk.room.phase = Phase.FAILED
            for transfer in posted:
                transport.land(transfer)
            until(lambda: b.failure(chunk))
            message, quiescent = b.failure(chunk) or ("", False)
            assert "room ended" in message
            assert quiescent
            b.rest()
            assert transport.posted == posted

    def test_without_cancel_a_posted_transfer_is_waited_for(self):
        transport = DoubleTransport(auto=False)
        with bench(transport) as b:
            chunk = b.submit(b.peer("decode"), [1], [1])
            until(lambda: transport.posted)
            chunk.room.phase = Phase.FAILED
            other = b.submit(b.peer("other"), [1], [1])
            until(lambda: len(transport.posted) == 2)
            transport.land(transport.posted[1])
            until(lambda: b.has_landed(other))
            assert "cancel" not in transport.calls
            transport.land(transport.posted[0])
            until(lambda: b.has_landed(chunk))

    def test_with_cancel_a_posted_transfer_is_ended_early(self):
        transport = DoubleTransport(auto=False)
        with bench(transport, capabilities=ALL | {Capability.CANCEL}) as b:
            chunk = b.submit(b.peer("decode"), [1], [1])
            until(lambda: transport.posted)
            chunk.room.phase = Phase.FAILED
            until(lambda: transport.posted[0].cancelled)
            until(lambda: id(chunk) in b.sink.failures)
            b.rest()

    def test_with_cancel_the_rest_of_a_failed_group_is_ended_early(self):
        config = settings(max_batch_descriptors=4)
        transport = DoubleTransport(config, auto=False)
        with bench(transport, config=config, capabilities=ALL | {Capability.CANCEL}) as b:
            chunk = b.submit(b.peer("decode"), [1, 2, 3], [1, 2, 3])
            until(lambda: len(transport.posted) == 3)
            transport.fail(transport.posted[0], "no route", quiescent=True)
            until(lambda: id(chunk) in b.sink.still)
            assert [t.cancelled for t in transport.posted] == [False, True, True]
            assert b.failure(chunk) == ("no route", False)

    def test_a_cancel_that_raises_is_survived(self):
        transport = DoubleTransport(auto=False)
        transport.raising["cancel"] = lambda _transfer: Surprise("no")
        with bench(transport, capabilities=ALL | {Capability.CANCEL}) as b:
            chunk = b.submit(b.peer("decode"), [1], [1])
            until(lambda: transport.posted)
            chunk.room.phase = Phase.FAILED
            until(lambda: "cancel" in transport.calls)
            transport.land(transport.posted[0])
            b.rest()
            assert chunk.settled


def test_an_exception_is_logged_with_its_type_but_not_each_time(caplog):
    caplog.set_level(logging.WARNING, "test.transfer")
    with bench() as b:
        peer = b.peer("decode")
        b.transport.raising["submit"] = lambda _peer: quiescent_error()
        for k in range(20):
            b.submit(peer, [k % 16], [0])
        until(lambda: len(b.sink.failures) == 20)
        assert b.engine.health()["kv-transfer"]["exceptions"] == 20
    lines = [record.getMessage() for record in caplog.records if "submit() failed" in record.getMessage()]
    assert len(lines) == 1
    assert "TransportError: the fabric refused it" in lines[0]


def test_the_other_peers_do_not_notice_a_frozen_one():
    page = 4 * 64
    config = settings(window_bytes=4 * page)
    transport = DoubleTransport(config)
    transport.frozen.add("frozen")
    with bench(transport, config=config, source=Memory(seed=11)) as b:
        frozen, moving = b.peer("frozen"), b.peer("moving")
        stuck = [b.submit(frozen, [k % 16], [k % 16]) for k in range(200)]
        chunks = [b.submit(moving, [k % 16], [(k * 5) % 16]) for k in range(200)]
        until(lambda: all(map(b.has_landed, chunks)))
        assert not any(map(b.has_landed, stuck))
        assert b.engine.snapshot()["queued_chunks"] == 196
        assert same(b.source, b.targets["moving"], "kv", list(np.arange(16)), [(k * 5) % 16 for k in range(16)])
        assert b.engine.stalled_s() == 0.0
        transport.frozen.clear()
        transport.wake()
        until(lambda: all(map(b.has_landed, stuck)))
        b.rest()


def test_a_room_of_many_pages_does_not_hold_up_small_ones_to_the_same_peer():
    page = 4 * 64
    config = settings(window_bytes=2 * page, max_batch_descriptors=4)
    transport = DoubleTransport(config, auto=False)
    with bench(transport, config=config) as b:
        peer = b.peer("decode")
        b.engine.put(SubmitChunk(b.chunk(peer, list(range(16)) * 20, list(range(16)) * 20)))
        small = [b.submit(peer, [k], [k]) for k in range(4)]
        landed: list[object] = []
        while not all(map(b.has_landed, small)):
            until(lambda: len(transport.posted) > len(landed))
            landed.append(transport.posted[len(landed)])
            transport.land(transport.posted[len(landed) - 1])
        assert len(landed) < 40
        transport.auto = True
        transport.wake()
        b.rest()
