"""KV-FAIL, continued: two sides that don't fit, nobody there, too many rooms, what can't be pickled, what submit() refuses."""

from __future__ import annotations

import copy
import socket
from time import monotonic
from typing import Any

import numpy as np

from kv_conformance.catalog import check
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import FaceNode, Pair
from kv_conformance.nodes.face_server import FaceServer
from kv_conformance.nodes.memory import Shape
from kv_conformance.nodes.wire_server import WireServer
from kv_core import FailureCode, FailureStage, KVPoll, NotPicklable, Role

PAGES = 16
SHAPE = Shape(kv=(4, PAGES, 64))
OURS: dict[str, Any] = {
    "page_size": 16, "dtype": "bfloat16", "kv_layout": "NHD", "model": "one-model", "revision": "r-one", "num_kv_heads": 8,
    "head_dim": 64, "extra": {"draft": "eagle"},
}  # fmt: skip
THEIRS: dict[str, Any] = {
    "page_size": 32, "dtype": "float8_e4m3", "kv_layout": "HND", "model": "another-model", "revision": "r-two",
    "num_kv_heads": 4, "head_dim": 128, "extra": {"draft": "none"},
}  # fmt: skip
MOST = 2
LOOK_S = 0.3


@check("KV-FAIL-8")
def test_two_sides_that_do_not_fit(env: Env) -> None:
    """Two sides of which any field of the handshake differs are refused before the first byte, with stage ``handshake`` and code
    ``incompatible``; the sentence names every field that differs with both values, on both sides the same.

    If this fails, look at whether the manager hands the engine's KVArgs to core as they are.
    """
    decode = env.face(Role.DECODE, Shape(kv=(3, PAGES, 64)), args=THEIRS, wait=False)
    pair = env.pair(SHAPE, prefill={"args": OURS}, decode={"args": OURS})
    decode.process.started()
    number = pair.number()
    untouched = decode.memory.image()
    sender, receiver = pair.prefill.open(pair.addr, number), decode.open(pair.addr, number)
    receiver.init()
    receiver.send_metadata([1, 2])
    sender.init(2)
    sender.send([1, 2])
    failures = [receiver.failed(), sender.failed()]
    for failure in failures:
        seen = (failure.stage, failure.code, failure.retryable)
        assert seen == (FailureStage.HANDSHAKE, FailureCode.INCOMPATIBLE, False), (
            f"expected handshake/incompatible, and that no retry can help; seen {failure}"
        )
        _names_every_difference(failure.message)
    assert failures[0].message == failures[1].message, f"the two sides are told different things: {failures}"
    assert not decode.memory.difference(untouched), decode.memory.difference(untouched)
    assert receiver.is_release_safe(), "not a byte may move between these two, and is_release_safe() is False at decode"
    assert sender.is_release_safe(), "not a byte may move between these two, and is_release_safe() is False at prefill"
    pair.good_room()


@check("KV-FAIL-9")
def test_nobody_is_there(env: Env) -> None:
    """Where nothing listens at the bootstrap address, or nobody else asks for the room, a room fails by itself after
    ``bootstrap_timeout_s`` with stage ``bootstrap``, code ``timeout`` and a sentence that names the setting, and the address.

    If this fails, look at what waits: for an answer of the bootstrap server, or of the other side, without a deadline.
    """
    address = _closed_port()
    config = {"bootstrap_timeout_s": 2.0}  # enough to see, on a busy machine too, that nobody listens
    prefill = env.face(Role.PREFILL, SHAPE, config={**config, "bootstrap_addr": address}, wait=False)
    decode = env.face(Role.DECODE, SHAPE, config=config, wait=False)
    for node, pages in ((prefill, [1]), (decode, [])):
        node.process.started()
        _alone(node, address, 1, address, *pages)
    _alone(decode, env.addr, 2, "bootstrap_timeout_s")  # the server is there, and no prefill rank


@check("KV-FAIL-10")
def test_what_belongs_to_one_process_is_not_pickled(env: Env) -> None:
    """Managers and handles refuse to be pickled, with ``NotPicklable`` and a sentence that says what to do instead.

    If this fails, look for ``__reduce__``, ``__reduce_ex__`` or ``__getstate__`` in the manager, sender and receiver classes.
    """
    pair = env.pair(SHAPE)
    for room in pair.begin([1], [2]):
        room.node.call(_refuses_to_be_pickled, room.number)


@check("KV-FAIL-11")
def test_one_room_too_many(env: Env) -> None:
    """With ``max_rooms`` rooms open, a further one is a failed room with code ``overloaded`` and a sentence that names the
    setting; it says that a retry can help, and the others go on. Once one of them is cleared there is room again.

    If this fails, look at whether the manager hands TransferConfig to core as it is, and at what clear() leaves.
    """
    pair = env.pair(SHAPE, config={"max_rooms": MOST})
    rooms = [pair.begin([number], [number]) for number in range(MOST)]
    for node in (pair.prefill, pair.decode):
        for _ in range(3):
            room = node.open(pair.addr, pair.number())
            failure = room.failed()
            assert failure.code is FailureCode.OVERLOADED, f"expected code overloaded, seen {failure}"
            assert failure.retryable, f"there will be room again, and it says that a retry can't help: {failure}"
            assert "max_rooms" in failure.message, f"the sentence does not name max_rooms: {failure.message}"
            room.clear()
    for number, (sender, receiver) in enumerate(rooms):
        sender.send([number])
        pair.succeed(sender, receiver)
        sender.clear()
        receiver.clear()
    _await_room(pair)


@check("KV-FAIL-12")
def test_what_submit_refuses_is_not_written(env: Env) -> None:
    """What submit() can't do it says with a ``TransportError``; if that says ``quiescent``, nothing was posted: not a byte of it
    lands, also later. A peer that was removed is refused so.

    If this fails, look at the order in submit(): look first, post then; once something is posted, raise nothing, or say
    ``quiescent=False``.
    """
    writer, target = env.ends(Shape(kv=(4, 64, 1024)))
    road = writer.meet(target)
    writer.write(road, ([0, 1], [0, 1]))
    expected = target.memory.image()
    writer.remove_peer(road)
    numbers = writer.submit_many(road, 3, (np.arange(2, 40), np.arange(2, 40)))
    for record in writer.drive(*numbers):
        assert record.refused, f"a submission to a peer that was removed was taken: {record}"
        assert record.quiescent, (
            f"nothing may be posted to a peer that was removed, and it says quiescent=False: {record}"
        )
        assert record.error, "the TransportError says nothing"
    again = writer.meet(target, 2)
    expected.take(writer.memory, [50], [41])
    writer.write(again, ([41], [50]))
    stray = writer.submit(road, ([42], [51]))  # of the generation that was removed
    assert writer.drive(stray)[0].refused, "what was prepared for a peer that was removed was used again"
    writer.release(*numbers, stray)
    writer.call(_look_on, LOOK_S)
    wrong = target.memory.difference(expected)
    assert not wrong, f"what was refused as quiescent was written: {wrong}"


def _names_every_difference(message: str) -> None:
    wanted = [(name, OURS[name], THEIRS[name]) for name in OURS if name != "extra"]
    wanted += [("extra.draft", "eagle", "none"), ("layer", "", "")]  # decode has a layer less
    parts = message.split(";")
    for name, mine, other in wanted:
        assert any(name in part and str(mine) in part and str(other) in part for part in parts), (
            f"the sentence does not say that {name} is {mine!r} at prefill and {other!r} at decode: {message}"
        )


def _alone(node: FaceNode, addr: str, number: int, says: str, *pages: int) -> None:
    room = node.open(addr, number)
    room.init(*pages)
    failure = room.failed()
    assert (failure.stage, failure.code) == (FailureStage.BOOTSTRAP, FailureCode.TIMEOUT), (
        f"{node.process.name}: expected bootstrap/timeout, seen {failure}"
    )
    assert "bootstrap_timeout_s" in failure.message, f"the sentence does not name the setting: {failure.message}"
    assert says in failure.message, f"the sentence does not name {says}: {failure.message}"
    assert failure.retryable, f"somebody may be there later, and it says that a retry can't help: {failure}"
    assert room.is_release_safe(), f"{node.process.name}: nobody ever heard of these pages, and they are not free"
    room.clear()


def _closed_port() -> str:
    """An address of this host at which nothing listens: it was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def _refuses_to_be_pickled(server: FaceServer, number: int) -> None:
    for thing in (server.manager, server.handles[number]):
        name = type(thing).__name__
        try:
            copy.copy(thing)  # asks what pickle asks
        except NotPicklable as error:
            text = str(error)
        else:
            raise AssertionError(f"{name} let itself be copied: it would be pickled into another process")
        if len(text.split()) < 4:
            raise AssertionError(f"{name} does not say what to do instead: {text!r}")


def _await_room(pair: Pair) -> None:
    """A cleared room's place is free: rooms can be opened again, as many as before."""
    for _ in range(MOST + 1):
        source, target = pair.random.permutation(PAGES)[:2], pair.random.permutation(PAGES)[:2]
        sender, receiver = pair.begin(source, target)
        sender.send(source)
        for room in (sender, receiver):
            look = room.until(KVPoll.Success, KVPoll.Failed)
            assert look.state is KVPoll.Success, (
                f"{MOST} rooms were cleared, and there is no room again: {look.failure}"
            )
            room.clear()


def _look_on(server: WireServer, seconds: float) -> None:
    """Drive the engine for a while, with nothing to ask about: what was posted in secret has time to land."""
    deadline = monotonic() + seconds
    while monotonic() < deadline:
        list(server.transport.progress([]))
        server.transport.wait(0.02)
