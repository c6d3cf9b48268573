"""KV-XFER: moving bytes. These are the checks of a transport by itself; ``test_rooms`` has those of rooms."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kv_conformance.catalog import check
from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.memory import POISON, Image, Memory, Shape
from kv_conformance.nodes.wire import Road, WireNode
from kv_conformance.suite.drawings import Drawing, draw
from kv_core import Capability, Role, TransferState

MAX_BATCH = 4096
"""Copies in one submission, as kv-core makes them by default."""
IN_FLIGHT = 64
SOON_S = 0.2
Items = npt.NDArray[np.int64]


class Copy(NamedTuple):
    """A transfer: whom to, and its items on each side."""

    target: WireNode
    here: Items
    there: Items


@check("KV-XFER-1")
def test_every_byte_arrives_and_no_other_is_touched(env: Env) -> None:
    """A transfer copies every byte of the items that it names to where it says, and touches nothing else.

    If this fails, look at how submit() turns a batch into addresses: both lists of items, one for one, on every lane.
    """
    writer, target = env.ends(Shape(kv=(4, 64, 1024)))
    road = writer.meet(target)
    here, there = env.random.permutation(64)[:40], env.random.permutation(64)[:40]
    source = writer.memory.image()
    _move(writer, target, road, here, there)
    wrong = writer.memory.difference(source)
    assert not wrong, f"the source was changed: {wrong}"


@check("KV-XFER-2")
def test_runs_of_neighbours(env: Env) -> None:
    """Item n of one list goes with item n of the other, whatever runs there are: neighbours on both sides, on one side only, in
    the opposite order, with holes, or the same source item for several targets.

    If this fails, look at how runs are merged (both sides must go on where they are), at lists that are sorted, and at what is
    kept of an earlier batch of the same length.
    """
    writer, target = env.ends(Shape(kv=(3, 64, 320)))
    road = writer.meet(target)
    up, random = np.arange(12), env.random
    scattered = np.sort(random.permutation(32)[:12]) * 2
    patterns: dict[str, tuple[Items, Items]] = {
        "neighbours on both sides": (up + 3, up + 40),
        "neighbours here, scattered there": (up + 17, random.permutation(scattered)),
        "neighbours there, scattered here": (random.permutation(scattered), up + 9),
        "neighbours in opposite order": (up + 20, up[::-1] + 1),
        "both backwards": (up[::-1] + 5, up[::-1] + 30),
        "every other one, on one side": (up * 2, up + 50),
        "runs of other lengths on each side": (
            np.r_[0:5, 20:23, 40:44],
            np.r_[1:4, 10:17, 60:62],
        ),
        "one source for many": (np.full(12, 7), random.permutation(64)[:12]),
        "two sources in turn": (np.tile([5, 6], 6), up + 2),
        "one item": (np.array([63]), np.array([0])),
        "all of them": (np.arange(64), np.arange(64)),
    }
    for what, (here, there) in patterns.items():
        _move(writer, target, road, here, there, what)


@check("KV-XFER-3")
def test_an_empty_batch_is_done_at_once(env: Env) -> None:
    """A batch without items or without layers is DONE and quiescent at once, and moves nothing.

    If this fails, look at submit() of a batch that has no slices: an engine would wait for ever, or refuse it.
    """
    writer, target = env.ends(Shape(kv=(2, 16, 64)))
    road = writer.meet(target)
    before = target.memory.image()
    batches: list[dict[str, Any]] = [{}, {"kv": ([], [])}, {"kv": ([1, 2], [3, 4]), "layers": range(2, 5)}]
    for batch in batches:
        number = writer.submit(road, **batch)
        if not writer.call(_posts_on_a_thread):
            said = [record for record in writer.progress(number) if record.number == number]
            assert said, "an empty batch is to be done at once, and the next call of progress() says nothing of it"
        record = writer.drive(number)[0]
        assert not record.refused, f"submit() refused an empty batch: {record.error}"
        assert record.state is TransferState.DONE, f"an empty batch is {record.state.value}, expected done"
        assert record.quiescent, "an empty batch is done and not quiescent"
        writer.release(number)
    wrong = target.memory.difference(before)
    assert not wrong, f"empty batches have written something: {wrong}"
    _move(writer, target, road, np.arange(16), env.random.permutation(16))


@check("KV-XFER-4")
def test_some_layers_only(env: Env) -> None:
    """A batch of a range of layers moves its items on those layers and touches no other.

    If this fails, look at which lanes of the plan a slice names: their numbers, not how many there are.
    """
    writer, target = env.ends(Shape(kv=(6, 32, 200)))
    road = writer.meet(target)
    for layers in (range(1), range(5, 6), range(2, 5), range(3, 4), range(6)):
        here, there = env.random.permutation(32)[:9], env.random.permutation(32)[:9]
        target.memory.poison()
        expected = target.memory.image()
        expected.take(writer.memory, there, here, layers=layers)
        writer.write(road, (here, there), layers=layers)
        _compare(target, expected, f"layers {layers}")


@check("KV-XFER-5")
def test_any_length_at_any_address(env: Env) -> None:
    """Items may have any length, also of one byte, begin at any address, and be of another length in each buffer; the
    two sides need not be aligned alike, nor have the same number of items.

    If this fails, look for copies by words, rounded lengths, and one length taken for all buffers.
    """
    lengths = (1, 3, 4097, 64, 333)
    ours, theirs = (_pile(lengths, items, first) for items, first in ((40, 1001), (25, 515)))
    shape = Shape(kv=(1, 1, 1 << 18), gap=0)
    writer = env.wire(Role.PREFILL, shape, register=False, wait=False)
    target = env.wire(Role.DECODE, shape, register=False, wait=False)
    for node, drawing in ((writer, ours), (target, theirs)):
        node.process.started()
        node.register(node.call(draw, drawing))
    road = writer.meet(target)
    for here, there in (
        (np.array([39, 0]), np.array([0, 24])),
        (np.arange(25) + 10, np.arange(25)),
        (env.random.permutation(40)[:25], env.random.permutation(25)),
    ):
        target.memory.poison()
        expected = target.memory.image()
        theirs.take(expected, there, writer.memory, here, ours)
        writer.write(road, (here, there))
        _compare(target, expected, f"items of {lengths} bytes")


@check("KV-XFER-6")
def test_everything_in_one_batch(env: Env) -> None:
    """A batch may have KV, state and auxiliary items together, each pool with items of its own; all of them are there when it
    is DONE. (State items if STATE is declared, auxiliary rows if AUX is.)

    If this fails, look at how submit() goes through the slices of a batch: there is one, or several, for each pool.
    """
    states = {"one": (2, 12, 100), "two": (1, 30, 7)} if env.declares(Capability.STATE) else {}
    shape = Shape(kv=(2, 24, 128), aux=(2, 6, 50) if env.declares(Capability.AUX) else None, states=states)
    writer, target = env.ends(shape)
    road = writer.meet(target)
    for left_out in ("", "kv", "aux", "one"):
        expected = target.memory.image()
        batch: dict[str, Any] = {"states": {}}
        for name, (_, items, _) in shape.pools().items():
            count = 1 if name == "aux" else items // 2
            here, there = env.random.permutation(items)[:count], env.random.permutation(items)[:count]
            if name == left_out:
                continue
            expected.take(writer.memory, there, here, name)
            if name == "kv":
                batch["kv"] = (here, there)
            elif name == "aux":
                batch["aux"] = (int(here[0]), int(there[0]))
            else:
                batch["states"][name] = (here, there)
        writer.write(road, **batch)
        _compare(target, expected, f"all pools but {left_out!r}" if left_out else "all pools")


@check("KV-XFER-7", faults=(Fault.FREEZE,))
def test_many_transfers_at_once(env: Env) -> None:
    """Any number of transfers may be under way at the same time; progress() tells of each that it was asked about, and when one
    is DONE its bytes are in the peer's memory, whatever becomes of the others, and also if the peer's process stands still.

    If this fails, look at whose completion is reported for whom, and whether it means that the bytes have landed or only that
    they were handed over.
    """
    shape = Shape(kv=(2, 2 * IN_FLIGHT, 128))
    writer = env.wire(Role.PREFILL, shape, wait=False)
    targets = [env.wire(Role.DECODE, shape, name=f"decode-{number}", wait=False) for number in range(2)]
    for node in (writer, *targets):
        node.process.started()
    roads = [writer.meet(target) for target in targets]
    for target, road in zip(targets, roads, strict=True):
        _move(writer, target, road, np.arange(4), np.arange(4))
        target.memory.poison()
    expected = [target.memory.image() for target in targets]
    still, running = targets
    still.freeze()
    under_way: dict[int, Copy] = {}
    for there in np.array_split(env.random.permutation(shape.kv[1]), IN_FLIGHT // 2):
        for target, road, image in zip(targets, roads, expected, strict=True):
            here = env.random.permutation(shape.kv[1])[: len(there)]
            image.take(writer.memory, there, here)
            under_way[writer.submit(road, (here, there))] = Copy(target, here, there)
    for record in writer.drive(*under_way, limit_s=SOON_S):
        if record.state is TransferState.DONE:
            _landed(writer, under_way[record.number])
    for target in (running, still):
        if target is still:
            still.thaw()
        own = [number for number, copy in under_way.items() if copy.target is target]
        for number in env.random.permutation(own).tolist():
            record = writer.drive(number)[0]
            assert record.state is TransferState.DONE, f"a transfer is {record.state.value}, not done: {record.error}"
            _landed(writer, under_way[number])
            writer.release(number)
    for target, image in zip(targets, expected, strict=True):
        _compare(target, image, f"{target.process.name}, {IN_FLIGHT} transfers at once")


@check("KV-XFER-8", gate=False)
def test_a_hundred_thousand_items(env: Env) -> None:
    """100,000 tiny items in each of two buffers arrive, in no order, in submissions of as many copies as kv-core makes at most.

    If this fails, look at the engine's limits: of copies in one call, of copies outstanding to a peer.
    """
    count = 100_000
    writer, target = env.ends(Shape(kv=(2, count, 3)))
    road = writer.meet(target)
    here, there = env.random.permutation(count), env.random.permutation(count)
    expected = target.memory.image()
    expected.take(writer.memory, there, here)
    step = MAX_BATCH // 2
    numbers = [writer.submit(road, (here[at : at + step], there[at : at + step])) for at in range(0, count, step)]
    writer.finish(*numbers)
    _compare(target, expected, f"{count} items")


@check("KV-XFER-9", gate=False)
def test_one_large_item(env: Env) -> None:
    """A single item of more than 64 MiB arrives whole.

    If this fails, look for a length that is cut off or a message that has a largest size.
    """
    writer, target = env.ends(Shape(kv=(1, 2, (64 << 20) + 4099), shift=1))
    _move(writer, target, writer.meet(target), np.array([1]), np.array([0]))


@check("KV-XFER-10", gate=False)
def test_offsets_beyond_four_gigabytes(env: Env) -> None:
    """A buffer may be longer than 4 GiB: offsets in it have 64 bits, on both sides.

    If this fails, look for offsets, strides or lengths in 32 bits, signed or not.
    """
    shape = Shape(kv=(1, 70_000, 1 << 16))
    ends = [Memory(shape) for _ in range(2)]  # of zeros, and nothing of it is there before it is touched
    writer, target = (
        env.wire(role, memory=memory, wait=False)
        for role, memory in zip((Role.PREFILL, Role.DECODE), ends, strict=True)
    )
    writer.process.started()
    target.process.started()
    here = np.array([69_999, 32_767, 32_768, 65_534, 65_535, 65_536, 65_537, 12, 69_000])
    there = np.array([69_998, 32_766, 32_767, 65_535, 65_536, 65_537, 65_538, 66_000, 3])
    for item in here:
        ends[0].kv[0][item] = env.random.integers(1, POISON, 1 << 16, np.uint8)
    writer.write(writer.meet(target), (here, there))
    for item, other in zip(there, here, strict=True):
        assert np.array_equal(ends[1].kv[0][item], ends[0].kv[0][other]), f"item {item} is not what item {other} was"
    for item in sorted(_near(there, shape.kv[1]) - set(there.tolist())):
        assert not ends[1].kv[0][item].any(), f"item {item}, which was not named, has been written"


# -- what the checks have in common --------------------------------------------------------------------------------


def _move(writer: WireNode, target: WireNode, road: Road, here: Items, there: Items, what: str = "items") -> None:
    """Write these items into poisoned memory, and compare all of it."""
    target.memory.poison()
    expected = target.memory.image()
    expected.take(writer.memory, there, here)
    writer.write(road, (here, there))
    _compare(target, expected, what)


def _compare(target: WireNode, expected: Image, what: str) -> None:
    wrong = target.memory.difference(expected)
    assert not wrong, f"{what}: {wrong}"


def _landed(writer: WireNode, copy: Copy) -> None:
    for mine, theirs in zip(writer.memory.kv, copy.target.memory.kv, strict=True):
        missing = int((theirs[copy.there] != mine[copy.here]).sum())
        assert not missing, (
            f"a transfer to {copy.target.process.name} is DONE, and {missing} bytes of it are not in that process's memory"
        )


def _posts_on_a_thread(server: Any) -> bool:
    """Whether the node calls submit() on a thread of its own, so that it need not be over yet."""
    return bool(server.blocking)


def _pile(lengths: tuple[int, ...], items: int, first: int) -> Drawing:
    """Buffers of items of these lengths, one behind the other."""
    ends = first + np.cumsum([length * items + 5 for length in lengths])
    starts = [first, *ends[:-1].tolist()]
    return Drawing(items, tuple(zip(starts, lengths, strict=True)))


def _near(items: Items, count: int) -> set[int]:
    """Neighbours of these items, and what they would be with offsets of 31 or 32 bits."""
    found = {int(item) + step for item in items for step in (-1, 1, -65_536, -32_768)}
    return {item for item in found if 0 <= item < count}
