"""KV-XFER, the second part: what rooms move. ``test_transfer`` has the checks of a transport by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import sleep
from typing import Any

import numpy as np
import numpy.typing as npt

from kv_conformance.catalog import check
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import FaceNode, Pair, Room
from kv_conformance.nodes.memory import Image, Shape
from kv_conformance.suite.in_node_rooms import (
    name_and_spoil,
    open_gate,
    send_and_reuse,
    send_and_spoil,
    send_gated,
    times_asked,
)
from kv_core import Capability, KVPoll, Role

Items = npt.NDArray[np.int64]
LOOK_S = 0.2
"""How long it is looked whether what must not happen does not."""
SHAPE = Shape(kv=(3, 64, 256))


@check("KV-XFER-11")
def test_chunks(env: Env) -> None:
    """A room's pages may come in one chunk or in many, of any lengths: each chunk continues where the last one ended. Indices
    may be arrays of any integer dtype, or lists.

    If this fails, look at what a sender of your own keeps of the chunks before.
    """
    pair = env.pair(SHAPE)
    for sizes in ([40], [1], [1] * 20, [1, 7, 2, 23, 3], [63, 1]):
        source, target = _pages(env, sum(sizes)), _pages(env, sum(sizes))
        _room(pair, source, target, _parts(source, sizes))
    for form in (list, lambda pages: pages.astype(np.int16), lambda pages: pages.astype(np.uint8)):
        source, target = _pages(env, 9), _pages(env, 9)
        expected = pair.expectation(source, target)
        sender, receiver = pair.open()
        sender.init(9)
        receiver.do("send_metadata", form(target))
        for part in _parts(source, [4, 5]):
            sender.do("send", form(part))
        _good_end(pair, sender, receiver)
        pair.compare(expected)


@check("KV-XFER-12")
def test_rooms_at_the_same_time(env: Env) -> None:
    """Any number of rooms may be under way at once between two processes, in whatever order their calls come: each moves its
    own pages.

    If this fails, look for what is kept for the process instead of the room, or found by the order of calls.
    """
    pair = env.pair(SHAPE)
    rooms = 10
    sources, targets = (np.array_split(_pages(env, 64), rooms) for _ in range(2))
    expected = pair.decode.memory.image()
    steps: list[list[Callable[[], Any]]] = []
    handles: list[Room] = []
    for source, target in zip(sources, targets, strict=True):
        expected.take(pair.prefill.memory, target, source)
        number = pair.number()
        sender, receiver = pair.prefill.open(pair.addr, number), pair.decode.open(pair.addr, number)
        handles += [sender, receiver]
        steps.append([receiver.init, partial(receiver.send_metadata, target)])
        sends = [partial(sender.send, part) for part in np.array_split(source, 3)]
        steps.append([partial(sender.init, len(source)), *sends])
    turns = np.repeat(np.arange(len(steps)), [len(each) for each in steps])
    for turn in env.random.permutation(turns):
        steps[turn].pop(0)()
    _good_end(pair, *handles)
    pair.compare(expected)


@check("KV-XFER-13", gate=False)
def test_several_peers_at_the_same_time(env: Env) -> None:
    """Several decode processes may take pages from several prefill instances at once; each page comes from the instance that
    its room names, and goes to the process that named it.

    If this fails, look at what is kept for each peer: more than one of them is known at a time, on both sides.
    """
    prefills = [env.face(Role.PREFILL, SHAPE, bootstrap=0, name=f"prefill-{n}", wait=False) for n in range(2)]
    decodes = [env.face(Role.DECODE, SHAPE, name=f"decode-{n}", wait=False) for n in range(2)]
    for node in (*prefills, *decodes):
        node.process.started()
    addresses = [prefill.bootstrap_addr for prefill in prefills]
    rooms: list[tuple[Room, Room, Items]] = []
    images = []
    number = 0
    for decode in decodes:
        expected = decode.memory.image()
        images.append(expected)
        for turn, target in enumerate(np.array_split(_pages(env, 64), 4)):
            number += 1
            prefill, addr = prefills[turn % 2], addresses[turn % 2]
            source = _pages(env, len(target))
            expected.take(prefill.memory, target, source)
            receiver, sender = decode.open(addr, number), prefill.open(addr, number)
            receiver.init()
            receiver.send_metadata(target)
            sender.init(len(source))
            rooms.append((sender, receiver, source))
    for sender, _, source in rooms:
        sender.send(source[:5])
    for sender, _, source in rooms[::-1]:
        sender.send(source[5:])
    for sender, receiver, _ in rooms:
        _succeed(sender, receiver)
    for decode, expected in zip(decodes, images, strict=True):
        wrong = decode.memory.difference(expected)
        assert not wrong, f"{decode.process.name}: {wrong}"


@check("KV-XFER-14")
def test_either_side_may_come_first(env: Env) -> None:
    """Either side may open a room first, and say what it has to say before the other one is there; pages may be named long after
    the handshake. Prefill waits for input when decode has named its pages, and not before.

    If this fails, look at what comes before the other side is known: it has to be kept.
    """
    pair = env.pair(SHAPE)
    for order in (_receiver_first, _sender_first, _metadata_late, _init_late):
        source, target = _pages(env, 12), _pages(env, 12)
        expected = pair.expectation(source, target)
        _good_end(pair, *order(pair, source, target))
        pair.compare(expected)


@check("KV-XFER-15")
def test_a_room_without_pages(env: Env) -> None:
    """Where decode has the whole prefix no page is sent: init(0) and one empty send complete the room on both sides, its
    auxiliary row arrives, and nothing else is touched.

    If this fails, look at what your transport makes of a batch without KV items, and your sender of an empty chunk.
    """
    pair = env.pair(Shape(kv=(3, 16, 256), aux=(1, 4, 96)))
    for aux in (None, (2, 1), None):
        expected = pair.expectation([], [], aux=aux)
        sender, receiver = pair.open()
        mine, theirs = aux or (None, None)
        sender.init(0, mine)
        receiver.send_metadata([], aux_index=theirs, decode_prefix_len=7)
        sender.until(KVPoll.WaitingForInput)
        sleep(LOOK_S / 4)
        assert sender.poll() is KVPoll.WaitingForInput, f"nothing was sent yet, and the sender is {sender.poll().name}"
        assert not receiver.poll().terminal, f"nothing was sent yet, and the receiver is {receiver.poll().name}"
        sender.send([])
        _good_end(pair, sender, receiver)
        pair.compare(expected)


@check("KV-XFER-16")
def test_auxiliary_rows(env: Env) -> None:
    """A room's auxiliary row arrives in the row that decode named, whether the backend declares AUX or not, as it is when
    the chunk that completes the room is handed over; no other row is touched.

    If this fails, look at which of the two rows is the local one, and when it is read.
    """
    pair = env.pair(Shape(kv=(2, 32, 256), aux=(2, 8, 72)))
    for row, other in ((0, 0), (7, 2), (3, 7)):
        source, target = _pages(env, 6, 32), _pages(env, 6, 32)
        sender, receiver = pair.begin(source, target, aux=(row, other))
        sender.send(source[:4])
        sleep(LOOK_S / 4)
        for buffer in pair.prefill.memory.pools["aux"]:
            buffer[row] = env.random.integers(1, 200, buffer.shape[1], np.uint8)
        expected = pair.expectation(source, target, aux=(row, other))
        sender.send(source[4:])
        _good_end(pair, sender, receiver)
        pair.compare(expected)


@check("KV-XFER-17", requires=Capability.STATE)
def test_state_items(env: Env) -> None:
    """State items of any number of pools arrive with the room's pages, in one chunk or in several, in the items that decode
    named for each pool. Without STATE a manager with state pools is refused.

    If this fails, look at how a batch's slices are told apart: each pool has items and buffers of its own.
    """
    pair = env.pair(Shape(kv=(2, 32, 256), aux=(1, 4, 40), states={"mamba": (2, 8, 700), "window": (1, 40, 48)}))
    source, target = _pages(env, 8, 32), _pages(env, 8, 32)
    states = {
        name: (_list(env, count, n), _list(env, count, n)) for name, count, n in (("mamba", 8, 3), ("window", 40, 9))
    }
    pair.move(source, target, chunks=2, states=states, aux=(3, 1))
    states = {
        name: (_list(env, count, n), _list(env, count, n)) for name, count, n in (("mamba", 8, 1), ("window", 40, 6))
    }
    expected = pair.expectation(target, source, states=states)
    sender, receiver = pair.begin(target, source, states=states)
    window = np.array(states["window"][0], np.uint64)
    sender.send(target[:5], state_indices={"window": window[:2]})
    sender.send(target[5:], state_indices={"window": window[2:], "mamba": np.array(states["mamba"][0], np.uint64)})
    _good_end(pair, sender, receiver)
    pair.compare(expected)


@check("KV-XFER-18")
def test_layer_by_layer(env: Env) -> None:
    """A chunk may be of some layers: it moves its pages on those and touches no others, and the room ends when every layer has
    all of its pages, in whatever order the layers come.

    If this fails, look at what your sender does with layers, and at which lanes your transport takes.
    """
    shape = Shape(kv=(4, 32, 256))
    pair = env.pair(shape)
    for ranges in ([range(1), range(1, 2), range(2, 4)], [range(2, 4), range(2)], [range(1, 4), range(1)]):
        source, target = _pages(env, 9, 32), _pages(env, 9, 32)
        pair.decode.memory.poison()
        expected = pair.decode.memory.image()
        sender, receiver = pair.begin(source, target)
        for number, layers in enumerate(ranges):
            assert receiver.poll() is not KVPoll.Success, f"success, and layers {ranges[number:]} were not sent"
            expected.take(pair.prefill.memory, target, source, layers=layers)
            for part in (source[:4], source[4:]):
                sender.send(part, layers=layers)
            env.wait_until(partial(_equal, pair, expected), f"{layers} of {ranges}, and no other")
        _good_end(pair, sender, receiver)
        pair.compare(expected)


@check("KV-XFER-19", reaches=("asked before it was ready",))
def test_a_source_that_is_not_ready(env: Env) -> None:
    """A chunk's ready.query() is asked before its source is read, without end until it says True; nothing of the chunk is moved
    before, and what arrives is what was there then. Other rooms do not wait for it.

    If this fails, look at a sender of your own that does not hand ready on, or reads pages when send() is called.
    """
    pair = env.pair(SHAPE)
    source, target = _pages(env, 64), _pages(env, 64)
    sender, receiver = pair.begin(source[:8], target[:8])
    before = pair.decode.memory.image()
    sender.send(source[:3])
    before.take(pair.prefill.memory, target[:3], source[:3])
    pair.prefill.call(send_gated, sender.number, source[3:8].tolist())
    env.wait_until(lambda: pair.prefill.call(times_asked, sender.number) >= 2, "query() asked twice")
    env.reached("asked before it was ready")
    env.wait_until(
        lambda: not pair.decode.memory.difference(before), "the chunk before the one that waits, and no other"
    )
    sleep(LOOK_S)
    pair.compare(before)
    assert not sender.is_release_safe(), "pages that were not read yet are said to be free"
    pair.move(source[20:30], target[20:30])
    for buffer in pair.prefill.memory.kv:
        buffer[source[3:8]] = env.random.integers(1, 200, (5, buffer.shape[1]), np.uint8)
    expected = pair.expectation(source[:8], target[:8])
    pair.prefill.call(open_gate, sender.number)
    _good_end(pair, sender, receiver)
    pair.compare(expected)


@check("KV-XFER-20")
def test_source_pages_are_used_again_at_once(env: Env) -> None:
    """From the moment at which the sender's is_release_safe() says True its pages may be overwritten: decode has, or gets, what
    was there when they were sent.

    If this fails, look at what your transport calls quiescent, and at an is_release_safe() of your own.
    """
    pair = env.pair(Shape(kv=(4, 64, 8192)))
    for _ in range(6):
        pair.prefill.memory.randomise(env.random)
        source, target = _pages(env, 48), _pages(env, 48)
        expected = pair.expectation(source, target)
        sender, receiver = pair.begin(source, target)
        args = (sender.number, source.tolist(), env.patience_s)
        safe = pair.prefill.call(send_and_reuse, *args, limit_s=env.patience_s)
        assert safe, f"is_release_safe() of the sender is still False after {env.patience_s:.0f} s"
        _good_end(pair, sender, receiver)
        pair.compare(expected)


@check("KV-XFER-21", gate=False)
def test_index_arrays_are_copied(env: Env) -> None:
    """send() and send_metadata() copy the indices: the engine may use its arrays for something else as soon as they return,
    also when the other side is not there yet.

    If this fails, look for an array that is kept as it was given, perhaps because its dtype was right already.
    """
    pair = env.pair(SHAPE)
    for sender_first in (True, False):
        source, target = _pages(env, 12), _pages(env, 12)
        expected = pair.expectation(source, target)
        number = pair.number()
        sender, receiver = pair.prefill.open(pair.addr, number), pair.decode.open(pair.addr, number)
        sender.init(12)
        steps = [
            partial(pair.prefill.call, send_and_spoil, sender.number, source.tolist()),
            partial(pair.decode.call, name_and_spoil, receiver.number, target.tolist()),
        ]
        for step in steps if sender_first else steps[::-1]:
            step()
            sleep(LOOK_S / 4)
        _good_end(pair, sender, receiver)
        pair.compare(expected)


@check("KV-XFER-22", gate=False)
def test_a_prefix_that_decode_has(env: Env) -> None:
    """decode_prefix_len, which decode names with its pages, is known at the sender from WaitingForInput on; only the pages
    behind it are sent.

    If this fails, look at a sender of your own that does not hand decode_prefix_len on.
    """
    pair = env.pair(SHAPE)
    for prefix in (0, 5, 17):
        source, target = _pages(env, 20), _pages(env, 20 - prefix)
        expected = pair.expectation(source[prefix:], target)
        sender, receiver = pair.open()
        seen = pair.prefill.process.ask("decode_prefix_len", sender.number)
        assert seen == 0, f"decode_prefix_len is {seen} before WaitingForInput, expected 0"
        sender.init(20 - prefix)
        receiver.send_metadata(target, decode_prefix_len=prefix)
        sender.until(KVPoll.WaitingForInput)
        seen = pair.prefill.process.ask("decode_prefix_len", sender.number)
        assert seen == prefix, f"decode has {prefix} pages already, and the sender's decode_prefix_len is {seen}"
        sender.send(source[prefix:])
        _good_end(pair, sender, receiver)
        pair.compare(expected)


@check("KV-XFER-23", gate=False)
def test_a_very_long_prompt(env: Env) -> None:
    """A room of 100,000 pages in two buffers arrives, in three chunks, however many submissions that takes.

    If this fails, look at the engine's limits: of copies in one call, of copies outstanding to a peer.
    """
    count = 100_000
    pair = env.pair(Shape(kv=(2, count, 8)))
    pair.move(env.random.permutation(count), env.random.permutation(count), chunks=3)


# -- what the checks have in common --------------------------------------------------------------------------------


def _pages(env: Env, count: int, of: int = 64) -> Items:
    return env.random.permutation(of)[:count]


def _list(env: Env, of: int, count: int) -> list[int]:
    return [int(item) for item in _pages(env, count, of)]


def _parts(pages: Items, sizes: Sequence[int]) -> list[Items]:
    return np.split(pages, np.cumsum(sizes)[:-1])


def _room(pair: Pair, source: Items, target: Items, parts: Sequence[Items]) -> None:
    """A room with these chunks, from its opening to its good end."""
    expected = pair.expectation(source, target)
    sender, receiver = pair.begin(source, target)
    for part in parts:
        sender.send(part)
    _good_end(pair, sender, receiver)
    pair.compare(expected)


def _equal(pair: Pair, expected: Image) -> bool:
    return not pair.decode.memory.difference(expected)


def _succeed(*rooms: Room) -> None:
    for room in rooms:
        look = room.until()
        assert look.state is KVPoll.Success, f"room {room.room} at {room.node.process.name} failed: {look.failure}"


def _good_end(pair: Pair, *rooms: Room) -> None:
    """All of these succeed, and their pages may be used again."""
    pair.succeed(*rooms)
    nodes: dict[str, tuple[FaceNode, list[Room]]] = {}
    for room in rooms:
        nodes.setdefault(room.node.process.name, (room.node, []))[1].append(room)
    for node, own in nodes.values():
        node.await_safe(*own)
    for room in rooms:
        room.clear()


# -- orders in which a room may begin ------------------------------------------------------------------------------


def _receiver_first(pair: Pair, source: Items, target: Items) -> tuple[Room, Room]:
    number = pair.number()
    receiver = pair.decode.open(pair.addr, number)
    receiver.init()
    receiver.send_metadata(target)
    receiver.until(KVPoll.WaitingForInput)
    sender = pair.prefill.open(pair.addr, number)
    sender.init(len(source))
    sender.until(KVPoll.WaitingForInput)
    sender.send(source)
    return sender, receiver


def _sender_first(pair: Pair, source: Items, target: Items) -> tuple[Room, Room]:
    number = pair.number()
    sender = pair.prefill.open(pair.addr, number)
    sender.init(len(source))
    for part in np.array_split(source, 3):
        sender.send(part)
    sleep(LOOK_S / 4)
    assert sender.poll() is KVPoll.Bootstrapping, f"decode is not there yet, and the sender is {sender.poll().name}"
    receiver = pair.decode.open(pair.addr, number)
    receiver.init()
    receiver.send_metadata(target)
    return sender, receiver


def _metadata_late(pair: Pair, source: Items, target: Items) -> tuple[Room, Room]:
    sender, receiver = pair.open()
    sender.init(len(source))
    receiver.until(KVPoll.WaitingForInput)
    sleep(LOOK_S / 4)
    state = sender.poll()
    assert state is KVPoll.Bootstrapping, f"decode has not named its pages yet, and the sender is {state.name}"
    receiver.send_metadata(target)
    sender.until(KVPoll.WaitingForInput)
    sender.send(source)
    return sender, receiver


def _init_late(pair: Pair, source: Items, target: Items) -> tuple[Room, Room]:
    sender, receiver = pair.open()
    receiver.send_metadata(target)
    sender.until(KVPoll.WaitingForInput)
    sender.init(len(source))
    sender.send(source)
    return sender, receiver
