"""Calls that can't be carried out: each fails its room with a type and a sentence, tells the other side, and no one else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from kv_core import FailureCode, FailureStage, KVPoll, KVTransferError, Side
from tests.support.memory import Shape
from tests.support.pair import QUICK, Pair, assert_failed, assert_success
from tests.support.waiting import wait_until

PAGES = 16
SHAPE = Shape(pages=PAGES, aux_rows=4, states={"mamba": (8, 32)})
CONFIG = QUICK | {"max_indices": 1_000, "bootstrap_timeout_s": 20.0}


@pytest.fixture(scope="module")
def shared() -> Iterator[Pair]:
    with Pair(SHAPE, config=CONFIG) as pair:
        yield pair


@pytest.fixture
def pair(shared: Pair) -> Iterator[Pair]:
    """One pair for all, without rooms of a test that failed."""
    with shared.cleaning():
        yield shared


@dataclass(frozen=True)
class Case:
    """One wrong call on an open room. ``says``: a pattern that the sentence must match."""

    name: str
    call: Callable[[Any], object]
    says: str


SENDER_CASES = [
    Case("init with a negative count", lambda s: s.init(-1), "num_kv_indices.*at least 0.*-1"),
    Case("init with a float", lambda s: s.init(2.0), r"num_kv_indices.*int.*2\.0"),
    Case("init with a bool", lambda s: s.init(True), "num_kv_indices.*True"),
    Case("init with a string", lambda s: s.init("4"), "num_kv_indices.*'4'"),
    Case("init beyond max_indices", lambda s: s.init(1_001), "1001.*max_indices is 1000"),
    Case("init with a row out of range", lambda s: s.init(1, 4), "aux.*4"),
    Case("init with a negative row", lambda s: s.init(1, -1), "aux.*-1"),
    Case("init twice", lambda s: (s.init(2), s.init(2)), "twice.*2"),
    Case("send before init", lambda s: s.send([1]), r"before init\(\)"),
    Case("send of floats", lambda s: (s.init(2), s.send(np.array([1.0, 2.0]))), "integers.*float64"),
    Case("send of a table", lambda s: (s.init(2), s.send(np.zeros((1, 2), np.int64))), r"one dimension.*\(1, 2\)"),
    Case("send of a negative index", lambda s: (s.init(2), s.send([1, -1])), "-1"),
    Case("send out of range", lambda s: (s.init(2), s.send([1, PAGES])), f"{PAGES}"),
    Case("send of 2**63", lambda s: (s.init(2), s.send(np.array([2**63], np.uint64))), "9223372036854775808"),
    Case("send beyond the count", lambda s: (s.init(2), s.send([1, 2, 3])), "beyond the 2 pages"),
    Case("send beyond the count, in two", lambda s: (s.init(2), s.send([1]), s.send([2, 3])), "beyond the 2 pages"),
    Case("send of too many", lambda s: (s.init(2), s.send(np.zeros(1_001, np.int64))), "1001.*max_indices"),
    Case("send of nothing that is an index", lambda s: (s.init(2), s.send([object()])), "dtype"),
    Case("send of None", lambda s: (s.init(2), s.send(None)), "one dimension"),
    Case("send with a list of layers", lambda s: (s.init(2), s.send([1], layers=[0, 1])), "layers must be a range.*list"),
    Case("send of layers that are not there", lambda s: (s.init(2), s.send([1], layers=range(2, 4))), "none of this rank.s layers"),
    Case("send of every other layer", lambda s: (s.init(2), s.send([1], layers=range(0, 2, 2))), "layer"),
    Case("send with something that can't be asked", lambda s: (s.init(2), s.send([1], ready=7)), r"query\(\).*int"),
    Case(
        "send of an unknown pool", lambda s: (s.init(2), s.send([1], state_indices={"nope": [0]})), "no pool 'nope'.*mamba"
    ),
    Case("send of the KV pool as a state", lambda s: (s.init(2), s.send([1], state_indices={"kv": [0]})), "argument of its own"),
    Case(
        "send of a state out of range", lambda s: (s.init(2), s.send([1], state_indices={"mamba": [8]})), "mamba.*8"
    ),
    Case("send of a state that decode did not name", lambda s: (s.init(2), s.send([1, 2], state_indices={"mamba": [1]})), "mamba.*decode named 0"),
    Case("announced another count than decode named", lambda s: s.init(3), "prefill announced 3.*decode named 2"),
]  # fmt: skip

RECEIVER_CASES = [
    Case("init with a negative rank", lambda r: r.init(-1), "prefill_dp_rank.*-1"),
    Case("init with a float", lambda r: r.init(0.0), r"prefill_dp_rank.*0\.0"),
    Case("init twice", lambda r: (r.init(), r.init()), "twice"),
    Case("init with a rank that prefill does not have", lambda r: r.init(3), "dp"),
    Case("metadata before init", lambda r: r.send_metadata([1]), r"before init\(\)"),
    Case("metadata twice", lambda r: (r.init(), r.send_metadata([1]), r.send_metadata([1])), "twice"),
    Case("metadata with floats", lambda r: (r.init(), r.send_metadata(np.array([1.5]))), "integers.*float64"),
    Case("metadata with a table", lambda r: (r.init(), r.send_metadata(np.zeros((2, 2), int))), r"one dimension.*\(2, 2\)"),
    Case("metadata with a negative index", lambda r: (r.init(), r.send_metadata([0, -3])), "-3"),
    Case("metadata out of range", lambda r: (r.init(), r.send_metadata([0, PAGES])), f"{PAGES}"),
    Case("metadata with a page twice", lambda r: (r.init(), r.send_metadata([4, 5, 4])), "twice"),
    Case("metadata with too many", lambda r: (r.init(), r.send_metadata(np.arange(1_001))), "1001.*max_indices"),
    Case("metadata with a row out of range", lambda r: (r.init(), r.send_metadata([1], aux_index=4)), "aux.*4"),
    Case("metadata with a row that is no number", lambda r: (r.init(), r.send_metadata([1], aux_index="0")), "dtype"),
    Case("metadata with an unknown pool", lambda r: (r.init(), r.send_metadata([1], state_indices={"x": [1]})), "no pool 'x'"),
    Case("metadata with a state out of range", lambda r: (r.init(), r.send_metadata([1], state_indices={"mamba": [99]})), "mamba.*99"),
    Case("metadata with a negative prefix", lambda r: (r.init(), r.send_metadata([1], decode_prefix_len=-1)), "decode_prefix_len.*-1"),
]  # fmt: skip


def assert_invalid(failure, says: str) -> None:
    assert failure.code is FailureCode.INVALID_REQUEST, failure
    assert re.search(says, failure.message), failure.message
    assert not failure.retryable, "the same call would fail again"


@pytest.mark.parametrize("case", SENDER_CASES, ids=lambda case: case.name)
def test_wrong_calls_of_a_sender(pair: Pair, case: Case):
    room = pair.number()
    with pair.alongside():
        receiver = pair.receiver(room)
        sender = pair.prefill.create_sender(pair.addr, room)
        receiver.send_metadata([3, 4])
        case.call(sender)
        here = assert_failed(sender)
        there = assert_failed(receiver)
    assert_invalid(here, case.says)
    assert here.side is Side.PREFILL
    assert (there.code, there.message, there.side) == (here.code, here.message, here.side), (
        "one root cause on both sides"
    )
    with pytest.raises(KVTransferError, match=f"room {room} failed"):
        sender.failure_exception()
    assert sender.get_transfer_metric().transfer_total_bytes is None
    end(pair, sender, receiver)


@pytest.mark.parametrize("case", RECEIVER_CASES, ids=lambda case: case.name)
def test_wrong_calls_of_a_receiver(pair: Pair, case: Case):
    room = pair.number()
    with pair.alongside():
        receiver = pair.decode.create_receiver(pair.addr, room)
        case.call(receiver)
        failure = assert_failed(receiver)
    if failure.code is FailureCode.INCOMPATIBLE:  # seen by decode, once it knows the topology of prefill
        assert re.search(case.says, failure.message), failure.message
    else:
        assert_invalid(failure, case.says)
        assert failure.side is Side.DECODE
    end(pair, receiver)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda r: r.send_metadata([1, 2], aux_index=1), "auxiliary row.*no aux_index"),
        (lambda r: r.send_metadata([1, 2], state_indices={"mamba": [1]}), "0 of 1 items of state 'mamba'"),
        (lambda r: r.send_metadata([1]), "prefill announced 2.*decode named 1"),
        (lambda r: r.send_metadata([1, 2, 3]), "prefill announced 2.*decode named 3"),
        (lambda r: r.send_metadata([]), "prefill announced 2.*decode named 0"),
    ],
    ids=["a row that does not come", "states that do not come", "too few", "too many", "none"],
)
def test_the_two_sides_want_different_things(pair: Pair, call: Callable[[Any], object], says: str):
    room = pair.number()
    with pair.alongside():
        receiver, sender = pair.receiver(room), pair.sender(room, [5, 6])
        call(receiver)
        sender.send([5, 6])
        here, there = assert_failed(sender), assert_failed(receiver)
    assert_invalid(here, says)
    assert there.message == here.message
    end(pair, sender, receiver)


def test_no_pages_announced_but_pages_named(pair: Pair):
    room = pair.number()
    with pair.alongside():
        receiver, sender = pair.receiver(room), pair.sender(room, [])
        sender.send([])
        receiver.send_metadata([3])
        assert_invalid(assert_failed(sender), "prefill announced 0.*decode named 1")
        assert_failed(receiver)
    end(pair, sender, receiver)


def test_calls_after_the_end_change_nothing(pair: Pair):
    room = pair.number()
    receiver, sender = pair.receiver(room), pair.sender(room, [4, 5])
    receiver.send_metadata([4, 5])
    sender.send([4, 5])
    assert_success(sender, receiver)
    with pair.alongside():
        for _ in range(2):
            sender.send([4, 5])
            sender.init(2)
            receiver.init()
            receiver.send_metadata([6])
            sender.abort("too late")
            receiver.abort("too late")
            assert sender.poll() is receiver.poll() is KVPoll.Success
            assert sender.failure() is receiver.failure() is None
            sender.clear()
            receiver.clear()
    assert sender.get_transfer_metric().transfer_total_bytes == 2 * pair.source.page_total_bytes
    assert sender.is_release_safe()
    assert receiver.is_release_safe()
    pair.at_rest()


def test_calls_on_a_room_that_failed_keep_the_first_cause(pair: Pair):
    sender = pair.prefill.create_sender(pair.addr, pair.number())
    sender.init(-5)
    first = assert_failed(sender)
    sender.send([1])
    sender.init(2)
    sender.abort()
    assert sender.failure() == first
    end(pair, sender)


@pytest.mark.parametrize(
    "number",
    [-1, 2**63, 2**64, -(2**63), "17", b"17", 1.0, True, False, None, [1]],
    ids=repr,
)
@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_room_numbers_that_are_none(pair: Pair, side: str, number: Any):
    with pair.alongside():
        if side == "prefill":
            handle: Any = pair.prefill.create_sender(pair.addr, number)
            handle.init(2)
            handle.send([1, 2])
        else:
            handle = pair.decode.create_receiver(pair.addr, number)
            handle.init()
            handle.send_metadata([1, 2])
        failure = assert_failed(handle)
        assert failure.stage is FailureStage.BOOTSTRAP
        assert_invalid(failure, r"bootstrap_room must be an int from 0 to 2\*\*63-1")
        assert handle.is_release_safe()
        handle.abort()
        handle.clear()
    pair.at_rest()


@pytest.mark.parametrize("side", ["prefill", "decode"])
@pytest.mark.parametrize("ended", [False, True], ids=["live", "ended, not cleared"])
def test_a_room_that_is_open_already(pair: Pair, side: str, ended: bool):
    room = pair.number()
    receiver, sender = pair.receiver(room), pair.sender(room, [7, 8])
    receiver.send_metadata([7, 8])
    if ended:
        sender.send([7, 8])
        assert_success(sender, receiver)
    create = pair.prefill.create_sender if side == "prefill" else pair.decode.create_receiver
    second: Any = create(pair.addr, room)
    failure = assert_failed(second)
    assert failure.code is FailureCode.DUPLICATE_ROOM
    assert re.search(r"was not cleared: call clear\(\)" if ended else "is live", failure.message), failure.message
    assert second.is_release_safe()
    second.clear()  # of the handle that failed: the live room does not notice
    if not ended:
        sender.send([7, 8])
    assert_success(sender, receiver)
    assert pair.target.holds(pair.seed, room, [7, 8])
    end(pair, sender, receiver)
    pair.good_room(room)  # cleared: the number is free again


def test_a_room_that_is_opened_again_while_the_other_side_has_not_cleared(pair: Pair):
    """Decode retries a request under its old number; prefill still holds the old room."""
    room = pair.number()
    receiver, sender = pair.receiver(room), pair.sender(room, [7])
    receiver.send_metadata([7])
    wait_until(lambda: sender.poll() is KVPoll.WaitingForInput, "the pages' names")
    receiver.abort("the request is retried")
    receiver.clear()
    again = pair.receiver(room)
    again.send_metadata([9])
    assert assert_failed(sender).code is FailureCode.ABORTED_REMOTE
    sender.clear()
    fresh = pair.sender(room, [7])
    fresh.send([7])
    assert_success(fresh, again)
    assert pair.target.holds(pair.seed, room, [9])
    end(pair, fresh, again)


@pytest.mark.parametrize(
    "addr", ["", "nowhere", "127.0.0.1:0", "127.0.0.1:70000", "127.0.0.1:http", None, 8998, "::1:80"]
)
@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_bootstrap_addresses_that_are_none(pair: Pair, side: str, addr: Any):
    room = pair.number()
    with pair.alongside():
        create = pair.prefill.create_sender if side == "prefill" else pair.decode.create_receiver
        handle: Any = create(addr, room)
        assert_invalid(assert_failed(handle), "address")
    end(pair, handle)


def test_a_hundred_thousand_pages():
    shape = Shape(pages=100_000, layers=1, page_bytes=8, aux_rows=0)
    with Pair(shape, config=QUICK | {"transferring_timeout_s": 30.0}) as pair:
        rng = np.random.default_rng(pair.seed)
        source, target = rng.permutation(100_000), rng.permutation(100_000)
        receiver, sender = pair.receiver(1), pair.sender(1, source)
        receiver.send_metadata(target)
        sender.send(source)
        assert_success(sender, receiver)
        assert pair.target.holds(pair.seed, 1, target)


def test_more_pages_than_a_message_can_name_is_refused_by_the_setting():
    with Pair(Shape(pages=64), config=QUICK | {"max_indices": 32}) as pair:
        receiver = pair.receiver(1)
        receiver.send_metadata(np.arange(33))
        assert_invalid(assert_failed(receiver), "33.*TransferConfig.max_indices is 32")
        receiver.clear()
        pair.good_room(2)


def end(pair: Pair, *handles: Any) -> None:
    """The pages are given back, the rooms go, and nothing is left of them."""
    for handle in handles:
        wait_until(handle.is_release_safe, f"room {handle.room} is safe to release")
        handle.clear()
    pair.at_rest()
