"""Rooms that are given up, in each state and from each side, and rooms whose transfers go wrong: what may be reused when."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import numpy as np
import pytest

from kv_core import DigestMode, FailureCode, FailureStage, KVPoll
from tests.support.memory import Shape
from tests.support.pair import DEFAULTS, QUICK, Pair, assert_failed, assert_success
from tests.support.waiting import wait_until

SHAPE = Shape(pages=32, layers=2, page_bytes=512)
CONFIG = QUICK | {"bootstrap_timeout_s": 20.0, "waiting_timeout_s": 20.0, "transferring_timeout_s": 20.0}
HOLD_S = 0.25


@pytest.fixture(autouse=True, params=["write", "read"])
def direction(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who moves the bytes."""
    monkeypatch.setitem(DEFAULTS, "direction", request.param)
    return str(request.param)


def faulty(*faults: dict[str, Any], **config: Any) -> Pair:
    """A pair of which the side that moves the bytes has these faults in its transport."""
    script = {"options": {"faults": list(faults), "seed": 7}}
    if DEFAULTS["direction"] == "write":
        return Pair(SHAPE, config=CONFIG | config, prefill=script)
    return Pair(SHAPE, config=CONFIG | config, decode=script)


def wait_for(handle: Any, state: KVPoll) -> None:
    wait_until(lambda: handle.poll() is state, lambda: f"{state.name}, it is {handle.poll().name}: {handle.failure()}")


def give_up(handle: Any, how: str) -> None:
    """Abort or clear."""
    if how == "abort":
        handle.abort("the client hung up")
    else:
        handle.clear()


def assert_given_up(by: Any, other: Any, how: str) -> None:
    """One root cause on both sides."""
    here, there = assert_failed(by), assert_failed(other)
    assert here.code is FailureCode.ABORTED_LOCAL
    assert there.code is FailureCode.ABORTED_REMOTE
    assert here.message == there.message
    assert ("the client hung up" if how == "abort" else "cleared while it was live") in here.message
    assert here.side == there.side


HOW = pytest.mark.parametrize("how", ["abort", "clear"])


@HOW
@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_waiting_for_input(side: str, how: str):
    with Pair(SHAPE, config=CONFIG) as pair, pair.alongside():
        receiver, sender = pair.receiver(1000), pair.sender(1000, [5, 6])
        receiver.send_metadata([5, 6])
        wait_for(sender, KVPoll.WaitingForInput)
        by, other = (sender, receiver) if side == "prefill" else (receiver, sender)
        give_up(by, how)
        assert_given_up(by, other, how)
        released(pair, [5, 6], sender, receiver)


@HOW
def test_decode_gives_up_before_it_named_pages(how: str):
    with Pair(SHAPE, config=CONFIG) as pair, pair.alongside():
        sender, receiver = pair.sender(1000, [5]), pair.receiver(1000)
        wait_for(receiver, KVPoll.WaitingForInput)
        give_up(receiver, how)
        assert receiver.is_release_safe(), "no page was named"
        assert_given_up(receiver, sender, how)
        released(pair, [5], sender, receiver)


@HOW
def test_decode_gives_up_before_prefill_opens(how: str):
    """An early abort is remembered: whoever opens against it fails at once, and the number is free after that."""
    with Pair(SHAPE, config=CONFIG) as pair, pair.alongside():
        receiver = pair.receiver(1000)
        receiver.send_metadata([5])
        wait_until(lambda: pair.prefill.snapshot()["early_rooms"], "the early news")
        give_up(receiver, how)
        wait_until(receiver.is_release_safe, "prefill's word that it writes nothing")
        sender = pair.sender(1000, [5])
        assert_given_up(receiver, sender, how)
        released(pair, [5], sender, receiver)
        pair.good_room(1000)


@HOW
def test_prefill_gives_up_before_decode_opens(how: str):
    with Pair(SHAPE, config=CONFIG) as pair, pair.alongside():
        sender = pair.sender(1000, [5])
        give_up(sender, how)
        assert sender.is_release_safe()
        receiver = pair.receiver(1000)
        receiver.send_metadata([5])
        assert_given_up(sender, receiver, how)
        released(pair, [5], sender, receiver)
        pair.good_room(1000)


@HOW
@pytest.mark.parametrize("call", ["nothing", "init"])
def test_decode_gives_up_while_it_looks_for_prefill(how: str, call: str):
    with Pair(SHAPE, config=CONFIG) as pair, pair.alongside():
        receiver = pair.decode.create_receiver("127.0.0.1:9", 1000)
        if call == "init":
            receiver.init()
        assert receiver.poll() is KVPoll.Bootstrapping
        give_up(receiver, how)
        assert assert_failed(receiver).code is FailureCode.ABORTED_LOCAL
        assert assert_failed(receiver).stage is FailureStage.BOOTSTRAP
        released(pair, [], receiver)


@HOW
@pytest.mark.parametrize("side", ["prefill", "decode"])
@pytest.mark.parametrize("fault", ["hold", "delay"])
def test_transferring_with_data_held_back(side: str, how: str, fault: str):
    """Pages are reused the moment that it is allowed, and the bytes that were held back never land in them."""
    with faulty({"kind": fault, "every": 2, "seconds": HOLD_S}) as pair:
        pair.good_room()  # the first submission
        began = monotonic()
        receiver, sender = pair.receiver(1000), pair.sender(1000, [5, 6, 7])
        receiver.send_metadata([15, 16, 17])
        sender.send([5, 6, 7])
        wait_for(sender, KVPoll.Transferring)
        by, other = (sender, receiver) if side == "prefill" else (receiver, sender)
        give_up(by, how)
        assert_given_up(by, other, how)
        # What was delayed can't be called back: then it lands before the release, and not after it.
        released(pair, [15, 16, 17], sender, receiver, landed=fault == "delay")
        wait_until(lambda: monotonic() > began + 2 * HOLD_S, "the time at which the bytes would have come")
        pair.good_room()
        assert pair.target.blank([15, 16, 17]), "bytes landed in pages that had been given back"


def test_a_late_write_lands_before_the_pages_are_given_back():
    """The fabric reports an error at once and writes all the same: nobody may reuse anything until it has."""
    with faulty({"kind": "late_write", "nth": 2, "seconds": HOLD_S}) as pair:
        pair.good_room()
        receiver, sender = pair.receiver(1000), pair.sender(1000, [5, 6, 7])
        receiver.send_metadata([15, 16, 17])
        sender.send([5, 6, 7])
        for handle in (sender, receiver):
            failure = assert_failed(handle)
            assert (failure.stage, failure.code) == (FailureStage.TRANSFER, FailureCode.TRANSPORT_ERROR)
            assert failure.retryable
        sender.clear()
        receiver.clear()
        pair.good_room()  # while that room drains
        wait_until(receiver.is_release_safe, lambda: f"proof: {pair.decode.snapshot()['quarantined']}")
        assert pair.target.holds(pair.seed, 1000, [15, 16, 17]), "given back before the late bytes had landed"
        pair.target.wipe([15, 16, 17])
        wait_until(sender.is_release_safe, "release on the prefill side")
        pair.good_room()
        assert pair.target.blank([15, 16, 17])
        pair.at_rest()


def test_quarantined_pages_are_named_with_the_proof_that_is_missing(direction: str):
    with faulty({"kind": "late_write", "nth": 1, "seconds": 0.8}) as pair:
        receiver, sender = pair.receiver(1000), pair.sender(1000, [5, 6])
        receiver.send_metadata([15, 16])
        sender.send([5, 6])
        assert_failed(receiver)
        receiver.clear()
        assert_failed(sender)
        moves, waits = (pair.prefill, pair.decode) if direction == "write" else (pair.decode, pair.prefill)
        [entry] = waits.snapshot()["quarantined"]
        assert (entry["room"], entry["pages"]) == (1000, 2)
        assert f"has not acknowledged that its {direction}s have ended" in entry["missing"][0]
        [entry] = moves.snapshot()["quarantined"]
        assert "not quiescent" in entry["missing"][0]
        wait_until(lambda: sender.is_release_safe() and receiver.is_release_safe(), "proof")
        assert pair.decode.snapshot()["quarantined"] == pair.prefill.snapshot()["quarantined"] == []


def test_bytes_that_never_leave_are_a_timeout():
    with faulty({"kind": "drop", "nth": 1}, transferring_timeout_s=0.6, draining_timeout_s=0.5) as pair:
        receiver, sender = pair.receiver(1000), pair.sender(1000, [5])
        receiver.send_metadata([15])
        sender.send([5])
        here, there = assert_failed(sender), assert_failed(receiver)
        assert here.code is there.code is FailureCode.TIMEOUT
        assert "transferring_timeout_s=0.6" in here.message
        released(pair, [15], sender, receiver)
        pair.good_room()


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "delay", "probability": 0.5, "seconds": 0.05},
        {"kind": "duplicate", "probability": 0.5},
        {"kind": "reorder", "probability": 0.5, "seconds": 0.05},
        {"kind": "slow", "probability": 0.5, "rate": 1e6},
        {"kind": "hold", "probability": 0.5, "seconds": 0.05},
        {"kind": "freeze", "nth": 9, "seconds": 0.3},
    ],
    ids=lambda fault: fault["kind"],
)
def test_a_bad_fabric_is_slow_but_right(fault: dict[str, Any]):
    with faulty(fault) as pair:
        handles = []
        for number in range(10):
            pages = [3 * number, 3 * number + 1, 3 * number + 2]
            receiver, sender = pair.receiver(number), pair.sender(number, pages)
            receiver.send_metadata(pages[::-1])
            for page in pages:
                sender.send([page])
            handles.append((receiver, sender, pages))
        for number, (receiver, sender, pages) in enumerate(handles):
            assert_success(receiver, sender)
            assert pair.target.holds(pair.seed, number, pages[::-1])
            receiver.clear()
            sender.clear()
        pair.at_rest()


# -- wrong bytes -------------------------------------------------------------------------------------------------------


def one_room(pair: Pair, room: int) -> tuple[Any, Any]:
    receiver, sender = pair.receiver(room), pair.sender(room, [5, 6, 7], row=1)
    receiver.send_metadata([15, 16, 17], aux_index=2)
    sender.send([5])
    sender.send([6, 7])
    return sender, receiver


def test_a_wrong_byte_fails_the_room_on_both_sides():
    with faulty({"kind": "corrupt", "every": 2}, digest=DigestMode.ALL) as pair:
        sender, receiver = one_room(pair, 1000)
        here, there = assert_failed(sender), assert_failed(receiver)
        for failure in (here, there):
            assert (failure.stage, failure.code) == (FailureStage.INTEGRITY, FailureCode.INTEGRITY)
            assert failure.retryable
        assert here.message == there.message
        released(pair, [15, 16, 17], sender, receiver, landed=True)


def test_digests_of_right_bytes_agree():
    with Pair(SHAPE, config=CONFIG | {"digest": "all"}) as pair:
        for room in range(5):
            sender, receiver = one_room(pair, room)
            assert_success(sender, receiver)
            assert pair.target.holds(pair.seed, room, [15, 16, 17])
            sender.clear()
            receiver.clear()
        pair.at_rest()


def test_without_digests_nobody_notices():
    """Which is what they are for."""
    with faulty({"kind": "corrupt", "every": 1}) as pair:
        sender, receiver = one_room(pair, 1000)
        assert_success(sender, receiver)
        right = pair.target.holds(pair.seed, 1000, [15, 16, 17]) and pair.target.holds_row(pair.seed, 1000, 2)
        assert not right


def test_a_sample_of_rooms_is_verified():
    with faulty({"kind": "corrupt", "every": 1}, digest="sampled", digest_sample=4) as pair:
        ends = []
        for room in range(64):
            sender, receiver = one_room(pair, room)
            wait_until(lambda r=receiver, s=sender: r.poll().terminal and s.poll().terminal, "the end")  # type: ignore[misc]
            assert receiver.poll() is sender.poll()
            ends.append(receiver.poll())
            sender.clear()
            receiver.clear()
        assert 4 <= ends.count(KVPoll.Failed) <= 32, "one in four, give or take"


def released(pair: Pair, pages: list[int], *handles: Any, landed: bool = False) -> None:
    """Reuse the pages at once when that is allowed; nothing may have landed, unless it did before the end."""
    checks: list[Callable[[], bool]] = [handle.is_release_safe for handle in handles]
    wait_until(lambda: all(check() for check in checks), lambda: f"proof: {pair.decode.snapshot()['quarantined']}")
    if landed:
        pair.target.wipe(pages)
    assert pair.target.blank(pages)
    for handle in handles:
        handle.clear()
        handle.clear()
        assert handle.is_release_safe()
        assert handle.poll() is KVPoll.Failed
    if pages:
        # The next tenant of the very same pages.
        receiver, sender = pair.receiver(77_777), pair.sender(77_777, [20, 21, 22][: len(pages)])
        receiver.send_metadata(np.array(pages))
        sender.send([20, 21, 22][: len(pages)])
        wait_until(lambda: receiver.poll().terminal, "the next tenant")
        assert receiver.poll() is KVPoll.Success, receiver.failure()
        assert pair.target.holds(pair.seed, 77_777, pages)
        receiver.clear()
        sender.clear()
        pair.target.wipe(pages)
