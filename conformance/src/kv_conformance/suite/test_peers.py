"""KV-PEER: getting to know peers, and forgetting them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kv_conformance.catalog import Level, check
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.memory import Shape
from kv_conformance.nodes.process import NodeError
from kv_conformance.nodes.wire import Road, WireNode
from kv_conformance.suite.in_node_places import count_resources
from kv_core import KVCoreError, Role, TransferState, TransportError
from kv_core.layout import MemoryLayout

SMALL = Shape(kv=(2, 32, 256))
MANY_BUFFERS = Shape(kv=(160, 4, 64), gap=64)
MAX_DESCRIPTOR = 1 << 20
MAX_NAME = 64
GENERATIONS = 14
SETTLED = 3
"""After so many generations what is made once has been made."""
SETTLE_S = 5.0
TARGETS = 8


@check("KV-PEER-1")
def test_nonsense_for_a_descriptor(env: Env) -> None:
    """A descriptor comes from the network: add_peer() raises TransportError if it makes no sense, and whatever the bytes are,
    it comes back, the process lives, and transfers to other peers go on.

    If this fails, look at what is checked before the descriptor goes into a native library: a magic, a version, a length, a
    checksum, each field's range.
    """
    writer, good, other = _star(env, 2)
    road = writer.meet(good)
    told = other.introduce()
    for generation, (what, data, senseless) in enumerate(_nonsense(env.random, told.descriptor), 1):
        if _taken(writer, told.name, generation, what, data):
            assert not senseless, f"add_peer() took {what} for a descriptor, expected TransportError"
            writer.remove_peer(Road(0, told.name, generation))
        else:
            _unknown(writer, told.name, generation, told.layout, f"after {what} was refused")
        if generation % 8 == 0:
            _see(env, writer, good, road)
    _see(env, writer, other, writer.meet(other, 1000))
    _see(env, writer, good, road)


@check("KV-PEER-2", gate=False)
def test_descriptors(env: Env) -> None:
    """local_descriptor() returns at most 1 MiB of bytes, however often it is asked; each of them reaches the memory that was
    registered by then, for any number of peers, and stays good when others have come.

    If this fails, look for a descriptor that is made for one peer, or used up, or that grows too fast with the memory.
    """
    target = env.wire(Role.DECODE, MANY_BUFFERS, wait=False)
    writers = [env.wire(Role.PREFILL, MANY_BUFFERS, wait=False) for _ in range(2)]
    for node in (target, *writers):
        node.process.started()
    first, second = target.introduce(), target.introduce()
    for told in (first, second):
        assert isinstance(told.descriptor, bytes), f"expected bytes, seen {type(told.descriptor).__name__}"
        size = len(told.descriptor)
        assert size <= MAX_DESCRIPTOR, f"a descriptor of {size} bytes for 160 buffers, at most {MAX_DESCRIPTOR}"
    for generation, told in ((1, second), (2, first)):
        road = writers[0].meet(told, generation)
        _see(env, writers[0], target, road)
        writers[0].remove_peer(road)
    _see(env, writers[0], target, writers[0].meet(second, 3))
    _see(env, writers[1], target, writers[1].meet(first))


@check("KV-PEER-3")
def test_a_removed_peer_is_refused(env: Env) -> None:
    """After remove_peer() submissions to the peer are refused at once, with TransportError and quiescent, and what was
    prepared for it has ended; others are not touched. An unknown peer is ignored by remove_peer(), and refused by prepare().

    If this fails, look at what submit() asks of the peer that something was prepared for.
    """
    writer, gone, other = _star(env, 2)
    road, beside = writer.meet(gone), writer.meet(other, 5)
    unused = writer.prepare(road.name, road.generation, gone.introduce().layout)
    _see(env, writer, gone, road)
    before = gone.memory.image()
    writer.remove_peer(road)
    for prepared in (road, unused):
        _refused(writer, prepared, "its peer was removed")
    wrong = gone.memory.difference(before)
    assert not wrong, f"written after the peer was removed: {wrong}"
    layout = other.introduce().layout
    for name, generation in ((road.name, 1), (beside.name, 4), (beside.name, 6), ("nobody", 1)):
        writer.remove_peer(Road(0, name, generation))
        _unknown(writer, name, generation, layout, f"generation {generation} is not known")
    _see(env, writer, other, beside)


@check("KV-PEER-4")
def test_generations_of_a_peer(env: Env) -> None:
    """A new generation of a peer is reached as soon as the older one was removed; what was prepared for the older one is
    refused, and the older one's removal, told again, does not touch the newer one.

    If this fails, look for a table of peers by name alone: it is the pair of name and generation that is added and removed.
    """
    writer, target = env.ends(SMALL)
    old: Road | None = None
    for generation in (1, 2, 7, 1000):
        road = writer.meet(target, generation)
        if old is not None:
            before = target.memory.image()
            _refused(writer, old, "its generation was removed")
            wrong = target.memory.difference(before)
            assert not wrong, f"written by what was prepared for generation {old.generation}: {wrong}"
            writer.remove_peer(old)
        _see(env, writer, target, road)
        writer.remove_peer(road)
        old = road


@check("KV-PEER-5", gate=False)
def test_many_peers_at_once(env: Env) -> None:
    """A transport serves any number of peers at once: each batch goes to the peer that it was prepared for, also when all are
    under way at the same time, and others go on when some are removed.

    If this fails, look for what there is only one of, and what is found by its place in a list.
    """
    writer, *targets = _star(env, TARGETS)
    roads = [writer.meet(target, 1 + number) for number, target in enumerate(targets)]
    _to_all(env, writer, targets, roads)
    for road in roads[::2]:
        writer.remove_peer(road)
    _to_all(env, writer, targets[1::2], roads[1::2])


@check("KV-PEER-6")
def test_the_fabric_has_a_name(env: Env) -> None:
    """describe() names the fabric that is in use to a peer in a word or two, before the first transfer and after it.

    If this fails, look at describe(): its answer stands in snapshots and reports, on one line.
    """
    writer, target = env.ends(SMALL)
    road = writer.meet(target)
    for when in ("before the first transfer", "after it"):
        name = writer.describe(road)
        assert isinstance(name, str), f"describe() returned {type(name).__name__} {when}, expected a text"
        good = 0 < len(name.strip()) <= MAX_NAME and name.isprintable()
        assert good, f"describe() returned {name!r} {when}, expected 1 to {MAX_NAME} printable characters"
        _see(env, writer, target, road)
    try:
        writer.process.ask("describe", "nobody", 1)
    except TransportError:
        return  # it may say that it does not know this peer; another exception is a mistake


@check("KV-PEER-7", level=Level.SHOULD, gate=False)
def test_removed_peers_leave_nothing_behind(env: Env) -> None:
    """A removed peer leaves no thread and no open file behind: a process that meets and forgets a peer again and again does not
    come nearer to its limits.

    If this fails, look at what is made for each generation of a peer: connections, threads, handles of the engine's.
    """
    writer, target = env.ends(SMALL)
    counts: list[tuple[int, int]] = []
    for generation in range(1, GENERATIONS + 1):
        road = writer.meet(target, generation)
        _see(env, writer, target, road)
        writer.remove_peer(road)
        counts.append(writer.call(count_resources))
    allowed = [count + (GENERATIONS - SETTLED) // 2 for count in counts[SETTLED]]

    def settled() -> bool:
        return all(count <= most for count, most in zip(writer.call(count_resources), allowed, strict=True))

    env.wait_until(
        settled,
        f"the writer had (threads, open files) {counts[SETTLED]} after {SETTLED + 1} generations of its peer had been removed, "
        f"and {counts[-1]} after {GENERATIONS}; to settle at no more than {tuple(allowed)}",
        limit_s=SETTLE_S,
    )


# -- what the checks have in common --------------------------------------------------------------------------------


def _star(env: Env, targets: int) -> list[WireNode]:
    """A writer and so many targets."""
    nodes = [env.wire(Role.PREFILL, SMALL, wait=False)]
    nodes += [env.wire(Role.DECODE, SMALL, wait=False, name=f"decode-{number}") for number in range(targets)]
    for node in nodes:
        node.process.started()
    return nodes


def _nonsense(random: np.random.Generator, good: bytes) -> Iterator[tuple[str, bytes, bool]]:
    """What it is, the bytes, and whether they can't make sense to anybody (others may: a flipped bit in a port, say)."""
    yield "no bytes at all", b"", True
    for size in (1, 64, 4096):
        yield f"{size} random bytes", random.bytes(size), size > 1
    yield "64 KiB of zeros", bytes(1 << 16), True
    yield "64 KiB of 0xff", b"\xff" * (1 << 16), True
    yield "a text of something else", b'{"backend": "another", "address": "192.0.2.1:1"}', False
    for tenth in range(1, 10):
        yield f"the first {tenth} tenths of a descriptor", good[: len(good) * tenth // 10], False
    yield "a descriptor with a byte behind it", good + b"\x01", False
    yield "a descriptor twice", good + good, False
    for _ in range(24):
        changed = bytearray(good)
        place = int(random.integers(len(good) * 8))
        changed[place // 8] ^= 1 << place % 8
        yield f"a descriptor with bit {place} flipped", bytes(changed), False


def _taken(writer: WireNode, name: str, generation: int, what: str, data: bytes) -> bool:
    """Whether add_peer() takes these bytes; otherwise it has raised TransportError."""
    try:
        writer.add_peer(name, generation, data)
    except TransportError:
        return False
    except (KVCoreError, NodeError) as error:
        raise AssertionError(
            f"add_peer() was given {what}; expected TransportError, seen {type(error).__name__}: {error}"
        ) from error
    return True


def _unknown(writer: WireNode, name: str, generation: int, layout: MemoryLayout, why: str) -> None:
    """Preparing for a peer that is not known must be refused, and quiescent."""
    try:
        writer.prepare(name, generation, layout)
    except TransportError as error:
        refused: TransportError | None = error
    else:
        refused = None
    assert refused is not None, f"prepare() for a peer that is not known: expected TransportError ({why})"
    assert refused.quiescent, f"prepare() moves nothing: its TransportError must be quiescent ({why}): {refused}"


def _refused(writer: WireNode, road: Road, why: str) -> None:
    number = writer.submit(road, ([0], [0]))
    record = writer.drive(number, limit_s=1.0)[0]
    assert record.refused, (
        f"submit() of what has ended ({why}): expected TransportError, seen a transfer that is {record.state.value}"
    )
    assert record.quiescent, f"submit() was refused ({why}), so nothing was posted: expected quiescent ({record.error})"
    writer.release(number)


def _see(env: Env, writer: WireNode, target: WireNode, road: Road) -> None:
    """Write some items, and compare all of the target's memory."""
    items = target.memory.shape.kv[1]
    count = min(items, 5)
    here, there = env.random.permutation(items)[:count], env.random.permutation(items)[:count]
    target.memory.poison()
    expected = target.memory.image()
    expected.take(writer.memory, there, here)
    writer.write(road, (here, there))
    wrong = target.memory.difference(expected)
    assert not wrong, f"{target.process.name}: {wrong}"


def _to_all(env: Env, writer: WireNode, targets: list[WireNode], roads: list[Road]) -> None:
    """Several batches to each, other items each time, all at once."""
    expected, numbers = [], []
    for target in targets:
        target.memory.poison()
        expected.append(target.memory.image())
    places = [np.array_split(env.random.permutation(SMALL.kv[1]), 3) for _ in targets]
    for batch in range(3):
        for image, road, there in zip(expected, roads, places, strict=True):
            here = env.random.permutation(SMALL.kv[1])[: len(there[batch])]
            image.take(writer.memory, there[batch], here)
            numbers.append(writer.submit(road, (here, there[batch])))
    records = writer.drive(*numbers)
    for record in records:
        assert record.state is TransferState.DONE, f"a transfer is {record.state.value}, expected done: {record.error}"
    writer.release(*numbers)
    for target, image in zip(targets, expected, strict=True):
        wrong = target.memory.difference(image)
        assert not wrong, f"{target.process.name}: {wrong}"
