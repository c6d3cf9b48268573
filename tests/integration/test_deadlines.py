"""Rooms that somebody waits for in vain: each deadline ends them with a sentence that names it; and queues that may take long."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from time import monotonic
from typing import Any

import pytest

from kv_core import FailureCode, FailureStage, KVPoll, Side
from tests.support.memory import Shape
from tests.support.pair import QUICK, Pair, assert_failed, assert_success
from tests.support.waiting import wait_until

SHAPE = Shape(pages=64)
SHORT = QUICK | {"bootstrap_timeout_s": 2.0, "waiting_timeout_s": 1.6, "transferring_timeout_s": 1.8, "lease_s": 2.0}
BOOTSTRAP, QUEUED, TRANSFER = FailureStage.BOOTSTRAP, FailureStage.QUEUED, FailureStage.TRANSFER

CASES: dict[str, tuple[FailureStage, Side, str]] = {
    "prefill alone": (BOOTSTRAP, Side.DECODE, "no decode rank asked for the room within bootstrap_timeout_s=2"),
    "decode alone": (QUEUED, Side.PREFILL, "did not open the room within waiting_timeout_s=1.6"),
    "nothing sent": (QUEUED, Side.PREFILL, "the engine sent nothing within waiting_timeout_s=1.6"),
    "stopped in the middle": (TRANSFER, Side.FABRIC, "no chunk moved within transferring_timeout_s=1.8"),
    "never initialised": (BOOTSTRAP, Side.DECODE, "init() was not called within bootstrap_timeout_s=2"),
}


@pytest.fixture(scope="module")
def rooms() -> Iterator[dict[str, list[Any]]]:
    """One room for each case, all at the same time."""
    with Pair(SHAPE, config=SHORT) as pair:
        pair.good_room()
        handles: dict[str, list[Any]] = {"prefill alone": [pair.sender(101, [1])]}
        handles["prefill alone"][0].send([1])
        handles["decode alone"] = [pair.receiver(102)]
        handles["decode alone"][0].send_metadata([2, 3])
        handles["nothing sent"] = [pair.receiver(103), pair.sender(103, [4])]
        handles["nothing sent"][0].send_metadata([4])
        handles["stopped in the middle"] = [pair.receiver(104), pair.sender(104, [5, 6])]
        handles["stopped in the middle"][0].send_metadata([5, 6])
        handles["stopped in the middle"][1].send([5])
        handles["never initialised"] = [pair.decode.create_receiver(pair.addr, 105)]
        pair.good_room()
        yield handles
        for handle in chain.from_iterable(handles.values()):
            handle.clear()
        assert pair.target.blank([1, 2, 3, 4, 6])
        for room in range(101, 106):
            pair.good_room(room)
        pair.at_rest()


@pytest.mark.parametrize("case", CASES)
def test_each_deadline_has_its_sentence(rooms: dict[str, list[Any]], case: str):
    stage, side, says = CASES[case]
    for handle in rooms[case]:
        failure = assert_failed(handle)
        assert (failure.stage, failure.side) == (stage, side), failure
        # Prefill tells decode that it does not know the room, unless decode's own deadline comes first.
        assert failure.code in {FailureCode.TIMEOUT} | ({FailureCode.UNKNOWN_ROOM} if case == "decode alone" else set())
        assert failure.retryable
        assert says in failure.message
        wait_until(handle.is_release_safe, "release")
    assert len({str(handle.failure()) for handle in rooms[case]}) == 1, "one root cause on both sides"


def test_a_queue_may_take_longer_than_any_deadline():
    """Decode has opened its rooms and waits for pages: its lease keeps prefill's side alive, opened already or not."""
    with Pair(SHAPE, config=SHORT) as pair:
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
    """Several slow chunks take longer than ``transferring_timeout_s`` together."""
    slow = {"options": {"faults": [{"kind": "delay", "every": 1, "seconds": 0.5}]}}
    with Pair(SHAPE, config=SHORT, prefill=slow) as pair:
        receiver, sender = pair.receiver(1), pair.sender(1, [1, 2, 3, 4, 5])
        receiver.send_metadata([1, 2, 3, 4, 5])
        for page in range(1, 6):
            sender.send([page])
            wait_until(partial(_arrived_or_ended, pair, sender, page), f"page {page}")
        assert_success(sender, receiver)


def _arrived_or_ended(pair: Pair, sender: Any, page: int) -> bool:
    return not pair.target.blank([page]) or sender.poll().terminal
