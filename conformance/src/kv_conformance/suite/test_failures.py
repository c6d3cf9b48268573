"""KV-FAIL: what can't work is a failed room with a type and a sentence, on both sides, and nobody else's affair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from kv_conformance.catalog import check
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import FaceNode, Pair, Room
from kv_conformance.nodes.face_server import FaceServer
from kv_conformance.nodes.memory import Shape
from kv_core import Failure, FailureCode, FailureStage, KVPoll, KVTransferError, Side
from kv_core.contract.interfaces import BaseKVHandle

PAGES, ROWS, MOST = 16, 4, 100
SHAPE = Shape(kv=(2, PAGES, 64), aux=(1, ROWS, 32))
CONFIG = {"max_indices": MOST}
FREE = (12, 13)
"""Pages that rooms which must fail name; the room beside them has others."""
INTO, FROM = (0, 1, 2, 3), (8, 9, 10, 11)


class Call(NamedTuple):
    """A method of a handle with its arguments."""

    method: str
    args: tuple[Any, ...] = ()
    named: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it


class Case(NamedTuple):
    """Calls of which the last one can't be carried out. says: what the sentence has to name."""

    name: str
    calls: tuple[Call, ...]
    says: str


def _send(value: Any, **named: Any) -> tuple[Call, Call]:
    return Call("init", (2,)), Call("send", (value,), named)


def _name(value: Any, **named: Any) -> tuple[Call]:
    return (Call("send_metadata", (value,), named),)


SENDER = (
    Case("a negative number of pages", (Call("init", (-1,)),), "-1"),
    Case("a number of pages that is no int", (Call("init", (2.0,)),), "2.0"),
    Case("more pages than max_indices", (Call("init", (MOST + 1,)),), "max_indices"),
    Case("a row that is not there", (Call("init", (2, ROWS)),), str(ROWS)),
    Case("init() twice", (Call("init", (2,)), Call("init", (2,))), "twice"),
    Case("send() before init()", (Call("send", ([1],)),), "init()"),
    Case("floats for indices", _send(np.array([1.0, 2.0])), "float64"),
    Case("a table of indices", _send(np.zeros((1, 2), np.int64)), "(1, 2)"),
    Case("a negative index", _send([1, -1]), "-1"),
    Case("an index out of range", _send([1, PAGES]), str(PAGES)),
    Case("an index of 2**63", _send(np.array([2**63], np.uint64)), str(2**63)),
    Case("more pages than announced", _send([1, 2, 3]), "2"),
    Case("no indices at all", _send(None), "dimension"),
    Case("objects for indices", _send(["a"]), "dtype"),
    Case("layers that are no range", _send([1], layers=[0, 1]), "range"),
    Case("layers that are not there", _send([1], layers=range(2, 4)), "layer"),
    Case("a ready that can't be asked", _send([1], ready=7), "query()"),
    Case("a state pool that is not there", _send([1], state_indices={"nope": [0]}), "nope"),
    Case("another number of pages than decode named", (Call("init", (3,)),), "3"),
)  # fmt: skip
RECEIVER = (
    Case("init() twice", (Call("init"),), "twice"),
    Case("pages named twice", (*_name(FREE), *_name(FREE)), "twice"),
    Case("floats for indices", _name(np.array([1.5, 2.5])), "float64"),
    Case("a table of indices", _name(np.zeros((2, 2), np.int64)), "(2, 2)"),
    Case("a negative index", _name([12, -3]), "-3"),
    Case("an index out of range", _name([12, PAGES]), str(PAGES)),
    Case("a page twice", _name([12, 13, 12]), "twice"),
    Case("more pages than max_indices", _name(np.zeros(MOST + 1, np.int64)), "max_indices"),
    Case("a row that is not there", _name([12], aux_index=ROWS), str(ROWS)),
    Case("a row that is no number", _name([12], aux_index="0"), "dtype"),
    Case("a state pool that is not there", _name([12], state_indices={"nope": [0]}), "nope"),
    Case("a negative prefix", _name([12], decode_prefix_len=-1), "-1"),
)
NO_ROOMS: tuple[Any, ...] = (-1, 2**63, "17", 1.0, True, None)
NO_ADDRESSES: tuple[Any, ...] = ("", "nowhere", "127.0.0.1:0", "127.0.0.1:70000", "127.0.0.1:http", None, 8998)


@check("KV-FAIL-1")
def test_wrong_calls_of_a_sender(env: Env) -> None:
    """A call of a sender that can't be carried out raises nothing: its room fails with code ``invalid_request`` and a sentence
    that says what was wrong, on both sides the same; nothing is written, and other rooms go on.

    If this fails, look at init() and send() of the sender class: never raise, never mend an argument by guessing.
    """
    pair = env.pair(SHAPE, config=CONFIG)
    with _beside(pair):
        for case in SENDER:
            sender, receiver = pair.open()
            receiver.send_metadata(FREE)
            _call(sender, case)
            here = _invalid(sender, case, Side.PREFILL)
            _same(here, receiver.failed(), case.name)
            _clear(sender, receiver)


@check("KV-FAIL-2")
def test_wrong_calls_of_a_receiver(env: Env) -> None:
    """A call of a receiver that can't be carried out raises nothing: its room fails with code ``invalid_request`` and a sentence
    that says what was wrong, on both sides the same; nothing is written, and other rooms go on.

    If this fails, look at init() and send_metadata() of the receiver class: never raise, never mend an argument by guessing.
    """
    pair = env.pair(SHAPE, config=CONFIG)
    with _beside(pair):  # the two sides know each other from now on: a failure is told at once
        for case in RECEIVER:
            sender, receiver = pair.open()
            sender.init(2)
            _call(receiver, case)
            here = _invalid(receiver, case, Side.DECODE)
            _same(here, sender.failed(), case.name)
            _clear(sender, receiver)


@check("KV-FAIL-3")
def test_the_two_sides_want_different_things(env: Env) -> None:
    """Where prefill sends what decode did not name, or not what it named, the room fails on both sides with code
    ``invalid_request`` and both numbers in its sentence; nothing is written, and other rooms go on.

    If this fails, look at whoever cuts or fills up the pages of one side to fit the other.
    """
    pair = env.pair(SHAPE, config=CONFIG)
    pages = np.array(FREE, np.uint64)
    cases: Sequence[tuple[int, Sequence[int], int | None, int | None, tuple[str, ...]]] = (
        (2, [12], None, None, ("2", "1")),
        (2, [12, 13, 14], None, None, ("2", "3")),
        (2, [], None, None, ("2", "0")),
        (0, [12], None, None, ("0", "1")),
        (2, [12, 13], None, 1, ("auxiliary",)),
    )
    with _beside(pair):
        for announced, named, row, wanted, words in cases:
            what = f"{announced} pages announced, {len(named)} named, rows {row} and {wanted}"
            sender, receiver = pair.open()
            receiver.do("send_metadata", np.array(named, np.uint64), aux_index=wanted)
            sender.init(announced, row)
            sender.send(pages[:announced])
            here = sender.failed()
            assert here.code is FailureCode.INVALID_REQUEST, f"{what}: expected code invalid_request, seen {here}"
            assert all(word in here.message for word in words), f"{what}: the sentence does not say so: {here.message}"
            _same(here, receiver.failed(), what)
            _clear(sender, receiver)


@check("KV-FAIL-4")
def test_numbers_and_addresses_that_are_none(env: Env) -> None:
    """A bootstrap_room that is no int from 0 to 2**63-1, or an address that is no ``host:port``, gives a handle of a room that has
    failed with stage ``bootstrap`` and code ``invalid_request``; its pages are free, and every call on it is harmless.

    If this fails, look at create_sender() and create_receiver(): they raise nothing for a room's sake.
    """
    pair = env.pair(SHAPE, config=CONFIG)
    with _beside(pair):
        for node in (pair.prefill, pair.decode):
            asked = [(pair.addr, number) for number in NO_ROOMS] + [(addr, pair.number()) for addr in NO_ADDRESSES]
            for addr, number in asked:
                what = f"{node.process.name} opened room {number!r} at {addr!r}"
                room = node.open(addr, number)
                failure = room.failed()
                assert failure.code is FailureCode.INVALID_REQUEST, f"{what}: expected invalid_request, seen {failure}"
                assert failure.stage is FailureStage.BOOTSTRAP, f"{what}: expected stage bootstrap, seen {failure}"
                _sentence(failure, what)
                _use(pair, room)
                assert room.failure() == failure, f"{what}: failed with {failure}, and is now {room.failure()}"
                _clear(room)


@check("KV-FAIL-5")
def test_a_room_that_is_open_already(env: Env) -> None:
    """A second room of a number that is open, or that has ended and was not cleared, is a failed room with code
    ``duplicate_room``; the first one does not notice, also when the second is cleared. Once cleared, the number is free.

    If this fails, look at what is kept by a room's number, and who drops it: a handle must drop its own room only.
    """
    pair = env.pair(SHAPE)
    source, target = env.random.permutation(PAGES)[:4], env.random.permutation(PAGES)[:4]
    expected = pair.expectation(source, target)
    sender, receiver = pair.begin(source, target)
    sender.send(source[:2])
    for first in (sender, receiver):
        _duplicate(pair, first)
    sender.send(source[2:])
    pair.succeed(sender, receiver)
    pair.compare(expected)
    for first in (sender, receiver):
        _duplicate(pair, first)
    _clear(sender, receiver)
    pair.move(source, target, room=sender.room)


@check("KV-FAIL-6")
def test_a_failure_is_typed_wherever_it_is_read(env: Env) -> None:
    """``failure()`` is a ``Failure`` with every field of its type, and survives pickling; failure_exception() raises KVTransferError
    with the room's number and the same failure. A room that has not failed has no failure and raises nothing.

    If this fails, look at failure() and failure_exception() of the sender and receiver classes.
    """
    pair = env.pair(SHAPE)
    sender, receiver = pair.begin([1], list(FREE[:1]))
    for room in (sender, receiver):
        room.node.call(_has_no_failure, room.number)
    sender.send([1])
    pair.succeed(sender, receiver)
    for room in (sender, receiver):
        room.node.call(_has_no_failure, room.number)
    aborted, other = pair.begin([1], list(FREE[:1]))
    aborted.abort("the request was cancelled")
    duplicate = pair.decode.open(pair.addr, other.room)
    for room in (aborted, other, duplicate):
        failure = room.failed()
        seen: Failure = room.node.call(_has_a_failure, room.number)
        assert seen == failure == room.look().failure, f"read again, the failure is another one: {failure}, {seen}"
        room.clear()
        assert room.node.call(_has_a_failure, room.number) == failure, "clear() changed the failure"


@check("KV-FAIL-7")
def test_the_first_cause_stays(env: Env) -> None:
    """A room's first root cause is its failure for ever, on both sides: later calls, aborts and clear() change neither the failure
    nor the state, and nothing that is called on a room that has ended well makes it fail.

    If this fails, look at what writes a room's failure, and whether it asks first if there is one.
    """
    pair = env.pair(SHAPE)
    failed = pair.begin([1, 2], FREE)
    failed[0].do("send", [1, PAGES])
    first = [room.failed() for room in failed]
    _same(first[0], first[1], "an index out of range")
    good = pair.begin([1, 2], FREE)
    good[0].send([1, 2])
    pair.succeed(*good)
    expected = pair.decode.memory.image()
    for room in (*failed, *good):
        for _ in range(2):
            _use(pair, room)
        room.abort("too late")
    for room, before in zip((*failed, *good), (*first, None, None), strict=True):
        after = room.look()
        assert after.failure == before, f"the failure was {before}, and is {after.failure} after further calls"
        wanted = KVPoll.Failed if before else KVPoll.Success
        assert after.state is wanted, f"the room was {wanted.name}, and is {after.state.name} after further calls"
        _clear(room)
        assert room.look().failure == before, f"the failure was {before}, and is {room.failure()} after clear()"
    pair.compare(expected)


# -- what they share -------------------------------------------------------------------------------------------------------


@contextmanager
def _beside(pair: Pair) -> Iterator[None]:
    """A room that is in the middle of its way all the time, and must end well: every byte of it, and none besides."""
    expected, before = pair.expectation(FROM, INTO, aux=(1, 2)), pair.prefill.memory.image()
    sender, receiver = pair.begin(FROM, INTO, aux=(1, 2))
    sender.send(FROM[:2])
    yield
    sender.send(FROM[2:])
    pair.succeed(sender, receiver)
    pair.compare(expected, before)
    _clear(sender, receiver)


def _call(room: Room, case: Case) -> None:
    for call in case.calls:
        room.do(call.method, *call.args, **call.named)


def _invalid(room: Room, case: Case, side: Side) -> Failure:
    failure = room.failed()
    assert failure.code is FailureCode.INVALID_REQUEST, f"{case.name}: expected code invalid_request, seen {failure}"
    assert failure.side is side, f"{case.name}: expected side {side.value}, seen {failure.side.value}: {failure}"
    assert not failure.retryable, f"{case.name}: the same call would fail again, and it is called retryable: {failure}"
    assert case.says in failure.message, f"{case.name}: the sentence does not name {case.says!r}: {failure.message!r}"
    _sentence(failure, case.name)
    return failure


def _sentence(failure: Failure, what: str) -> None:
    assert len(failure.message.split()) > 2, f"{what}: {failure.message!r} is no sentence"


def _same(here: Failure, there: Failure, what: str) -> None:
    mine, other = ((f.stage, f.code, f.message, f.side, f.retryable, f.origin) for f in (here, there))
    assert mine == other, f"{what}: one root cause has to be told on both sides; seen {here} and {there}"


def _clear(*rooms: Room) -> None:
    """What has failed of its own fault is free at once, or as soon as the other side has said so."""
    for room in rooms:
        room.node.await_safe(room)
        room.clear()


def _use(pair: Pair, room: Room) -> None:
    """Every call that there is, on a room that has ended."""
    if room.node is pair.prefill:
        room.do("init", 2)
        room.do("send", [1, 2])
    else:
        room.do("init")
        room.do("send_metadata", [1, 2])
    room.poll()
    room.metric()
    room.abort("too late")


def _duplicate(pair: Pair, first: Room) -> None:
    node: FaceNode = first.node
    before = first.look()
    second = node.open(pair.addr, first.room)
    failure = second.failed()
    assert failure.code is FailureCode.DUPLICATE_ROOM, f"expected code duplicate_room, seen {failure}"
    _sentence(failure, "a second room")
    assert second.is_release_safe(), "a room that never was can touch no page, and is_release_safe() is False"
    _use(pair, second)
    second.clear()
    after = first.look()
    assert after.state >= before.state, (
        f"the first room was {before.state.name}, and is {after.state.name} ({after.failure}) after the second one"
    )


def _has_no_failure(server: FaceServer, number: int) -> None:
    handle = server.handles[number]
    assert handle.failure() is None, f"a room in state {handle.poll().name} has the failure {handle.failure()!r}"
    handle.failure_exception()


def _has_a_failure(server: FaceServer, number: int) -> Failure:
    handle = server.handles[number]
    failure: object = handle.failure()
    assert isinstance(failure, Failure), f"failure() is {failure!r}, expected a Failure"
    for name, kind in (
        ("stage", FailureStage), ("code", FailureCode), ("side", Side), ("message", str), ("retryable", bool),
        ("origin", str), ("peer", str),
    ):  # fmt: skip
        value = getattr(failure, name)
        assert isinstance(value, kind), f"failure().{name} is {value!r}, expected {kind.__name__}"
    assert failure.origin, f"failure().origin is empty: nobody knows who saw it first: {failure}"
    raised = _raised(handle)
    assert raised is not None, f"failure_exception() raised nothing, and failure() is {failure}"
    assert raised.room == handle.room, f"KVTransferError.room is {raised.room}, expected {handle.room}"
    assert raised.failure == failure, f"KVTransferError.failure is {raised.failure}, failure() is {failure}"
    return failure


def _raised(handle: BaseKVHandle) -> KVTransferError | None:
    try:
        handle.failure_exception()
    except KVTransferError as error:
        return error
    return None
