"""Rooms that somebody waits for in vain: each deadline ends them with a sentence that names it; and queues that may take long."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from time import monotonic
from typing import Any

import pytest

from kv_core import FailureCode, FailureStage, KVPoll, Side
from tests.support.memory import Shape
from tests.support.pair import QUICK, Pair, assert_failed, assert_success
from tests.support.waiting import wait_until

SHAPE = Shape(pages=32)
SHORT = QUICK | {"bootstrap_timeout_s": 0.8, "waiting_timeout_s": 0.6, "transferring_timeout_s": 0.7, "lease_s": 0.6}


@pytest.fixture(scope="module")
def shared() -> Iterator[Pair]:
    with Pair(SHAPE, config=SHORT) as pair:
        pair.good_room()
        yield pair


@pytest.fixture
def pair(shared: Pair) -> Iterator[Pair]:
    with shared.cleaning():
        yield shared
    shared.at_rest()


def assert_timeout(handle: Any, stage: FailureStage, side: Side, *says: str) -> None:
    failure = assert_failed(handle)
    assert (failure.stage, failure.code, failure.side) == (stage, FailureCode.TIMEOUT, side), failure
    assert failure.retryable
    for text in says:
        assert text in failure.message
    wait_until(handle.is_release_safe, "release")


def test_nobody_asks_for_the_room(pair: Pair):
    sender = pair.sender(pair.number(), [1])
    sender.send([1])
    pair.good_room()
    assert_timeout(sender, FailureStage.BOOTSTRAP, Side.DECODE, "no decode rank asked", "bootstrap_timeout_s=0.8")


def test_prefill_never_opens_the_room_that_decode_named_pages_for(pair: Pair):
    room = pair.number()
    receiver = pair.receiver(room)
    receiver.send_metadata([1, 2])
    pair.good_room()
    failure = assert_failed(receiver)
    assert failure.code in (FailureCode.UNKNOWN_ROOM, FailureCode.TIMEOUT)
    assert failure.stage is FailureStage.QUEUED
    assert failure.side is Side.PREFILL
    assert "did not open the room within waiting_timeout_s=0.6" in failure.message
    wait_until(receiver.is_release_safe, "prefill's word")
    assert pair.target.blank([1, 2])
    receiver.clear()
    pair.good_room(room)


def test_prefill_sends_nothing(pair: Pair):
    receiver, sender = pair.receiver(pair.number()), pair.sender(pair.number() - 1, [1])
    receiver.send_metadata([1])
    assert_timeout(sender, FailureStage.QUEUED, Side.PREFILL, "sent nothing", "waiting_timeout_s=0.6")
    assert_timeout(receiver, FailureStage.QUEUED, Side.PREFILL, "sent nothing")


def test_prefill_stops_in_the_middle(pair: Pair):
    room = pair.number()
    receiver, sender = pair.receiver(room), pair.sender(room, [1, 2])
    receiver.send_metadata([1, 2])
    sender.send([1])
    assert_timeout(sender, FailureStage.TRANSFER, Side.FABRIC, "transferring_timeout_s=0.7", "last heard")
    assert_timeout(receiver, FailureStage.TRANSFER, Side.FABRIC, "transferring_timeout_s=0.7")


def test_receiver_is_never_initialised(pair: Pair):
    receiver = pair.decode.create_receiver(pair.addr, pair.number())
    assert_timeout(receiver, FailureStage.BOOTSTRAP, Side.DECODE, "init() was not called", "bootstrap_timeout_s=0.8")


def test_a_queue_may_take_longer_than_any_deadline():
    """Decode has opened its rooms and waits for pages: its lease keeps prefill's side alive, opened already or not."""
    with Pair(SHAPE, config=SHORT | {"lease_s": 2.0}) as pair:
        rooms = {7: [4, 5], 8: [14, 15]}
        receivers = {room: pair.receiver(room) for room in rooms}
        senders = {7: pair.sender(7, rooms[7])}
        wait_until(lambda: pair.prefill.snapshot()["leases"] == 2, "the queue")
        since = monotonic()
        wait_until(lambda: monotonic() > since + 3.0, "longer than every deadline")
        assert senders[7].poll() is KVPoll.Bootstrapping
        senders[8] = pair.sender(8, rooms[8])
        for room, pages in rooms.items():
            assert receivers[room].poll() is KVPoll.WaitingForInput
            receivers[room].send_metadata(pages)
            senders[room].send(pages)
        for room, pages in rooms.items():
            assert_success(senders[room], receivers[room])
            assert pair.target.holds(pair.seed, room, pages)


def test_a_transfer_that_makes_progress_has_time():
    """Many slow chunks take several times ``transferring_timeout_s`` together."""
    slow = {"options": {"faults": [{"kind": "delay", "every": 1, "seconds": 0.3}]}}
    with Pair(SHAPE, config=SHORT, prefill=slow) as pair:
        receiver, sender = pair.receiver(1), pair.sender(1, [1, 2, 3, 4, 5])
        receiver.send_metadata([1, 2, 3, 4, 5])
        for page in range(1, 6):
            sender.send([page])
            arrived = partial(_arrived_or_ended, pair, sender, page)
            wait_until(arrived, f"page {page}")
        assert_success(sender, receiver)


def _arrived_or_ended(pair: Pair, sender: Any, page: int) -> bool:
    return not pair.target.blank([page]) or sender.poll().terminal
