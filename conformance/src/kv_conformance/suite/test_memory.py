"""KV-MEM: registering memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kv_conformance.catalog import check
from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.memory import Shape
from kv_conformance.nodes.wire import Road, WireNode
from kv_conformance.suite.drawings import Drawing, draw, draw_both, reach
from kv_conformance.suite.in_node_places import SETTLE_S, Attempt, attempt_manager
from kv_core import KVCoreError, MemoryKind, Region, RegistrationError, Role

BYTES = Shape(kv=(1, 1, 1 << 16))
"""Memory for drawings."""
NO_DEVICE = 99
"""Number of a device that no machine has."""
DRAWN = Drawing(8, ((1024, 512), (8192, 512), (16384, 256), (20480, 256), (24576, 256)))
"""Two buffers that stay registered, and three that come and go."""
STAY = 2
NESTED = Drawing(4, ((4096, 2048), (20000, 100), (4600, 300), (18000, 3000), (11000, 500), (29001, 250)))
"""Buffer 2 lies inside of buffer 0, buffer 3 around buffer 1; 4 begins inside of 0 and ends beyond it, 5 does so with 3."""


@check("KV-MEM-1", faults=(Fault.REGISTRATION,), reaches=("a registration was refused",))
def test_registration_is_all_or_nothing(env: Env) -> None:
    """register_memory() registers all of its regions or none: on an error what the call registered is taken back, and
    the RegistrationError names the position of the region that could not be registered.

    If this fails, look at the way out of register_memory(): it has to deregister what it had registered, and to know which
    region it was (engines that take a list often don't tell).
    """
    position = env.setting(Role.DECODE, Fault.REGISTRATION).refused_region
    writer = env.wire(Role.PREFILL, BYTES, register=False, wait=False)
    target = env.wire(Role.DECODE, BYTES, register=False, fault=Fault.REGISTRATION, wait=False)
    writer.process.started()
    target.process.started()
    mine, theirs = draw_both(writer, target, DRAWN)
    writer.register(mine)
    for region in theirs[:STAY]:
        target.register([region])
    visible = bool(reach(writer, target, DRAWN.first(STAY + 1), 1))
    before = target.memory.image()
    refused_at = 1 if position is None else position
    good = theirs[STAY : STAY + 2]
    error = _refused(target, good, theirs[STAY + 2], refused_at, made=position is not None)
    if error is None:
        return  # nothing that this engine refuses was found: the point is not reached
    env.reached("a registration was refused")
    assert error.region == refused_at, (
        f"region {refused_at} of the call was refused, and RegistrationError.region is {error.region}: {error}"
    )
    if visible:
        _stays_out_of_reach(writer, target, 2, "the call that registered it has failed")
    wrong = target.memory.difference(before)
    assert not wrong, f"nothing was to be written by now: {wrong}"
    target.deregister(good)
    _write(env, writer, target, DRAWN.first(STAY), 3)
    for region in good:
        target.register([region])
    _write(env, writer, target, DRAWN.first(STAY + 2), 4)
    target.deregister(good)
    if visible:
        _stays_out_of_reach(writer, target, 5, "it was registered once since that call, and deregistered")


@check("KV-MEM-2")
def test_a_range_registered_twice_is_deregistered_twice(env: Env) -> None:
    """Registering a region's exact range twice is allowed, in one call or in two, and each registration is deregistered on its
    own: after the first of two deregistrations the memory is still usable.

    If this fails, look at how registrations are counted: engines usually know a range once, whoever asked for it.
    """
    writer, target = _unregistered(env)
    three = DRAWN.first(STAY + 1)
    ends = list(zip((writer, target), draw_both(writer, target, three), strict=True))
    for node, regions in ends:
        node.register([regions[0], regions[1], regions[0], regions[1]])
    visible = bool(reach(writer, target, three, 1))
    for node, regions in ends:
        node.register(regions[STAY:])
        node.register(regions[STAY:])
    road = writer.meet(target, 2)
    for node, regions in ends:
        node.deregister(regions)
    _move(env, writer, target, road, three)
    writer.remove_peer(road)
    _write(env, writer, target, three, 3)
    target.deregister(ends[1][1][STAY:])
    if visible:
        _stays_out_of_reach(writer, target, 4, "it was deregistered as often as it was registered")


@check("KV-MEM-3")
def test_overlapping_ranges_in_one_call(env: Env) -> None:
    """Ranges that overlap, or lie inside of one another, may be registered in one call, and a range inside of another one
    later, too; each is deregistered on its own, and takes nothing from the others.

    If this fails, look at engines that refuse a range which overlaps another, or look a range up by its first address: such
    ranges have to be registered as their union, and kept until the last of them goes.
    """
    writer, target = _unregistered(env)
    for node in (writer, target):
        regions = node.call(draw, NESTED)
        node.register([*regions[:2], *regions[3:]])
        node.register(regions[2:3])
    _deregister_one_by_one(env, writer, target)


@check("KV-MEM-4", gate=False)
def test_overlapping_ranges_in_separate_calls(env: Env) -> None:
    """Ranges that overlap, or lie inside of one another, may be registered in separate calls, in any order; each is
    deregistered on its own, and takes nothing from the others.

    If this fails, look at engines that refuse a range which overlaps what they have. Where a registered range can't grow, say
    so in the file of known failures: kv-core itself registers everything in one call.
    """
    writer, target = _unregistered(env)
    for node in (writer, target):
        for region in node.call(draw, NESTED):
            node.register([region])
    _deregister_one_by_one(env, writer, target)


@check("KV-MEM-5")
def test_ranges_that_share_pages(env: Env) -> None:
    """A region may begin at any address and have any length: several may share a page of memory, and each is reached from its
    first byte to its last. Deregistering one leaves its neighbours as they are.

    If this fails, look for addresses or lengths that are rounded to pages or words, and for registrations kept by page.
    """
    shape = Shape(kv=(6, 9, 333), gap=13, shift=7)
    writer, target = env.ends(shape)
    road = writer.meet(target)
    expected = target.memory.image()
    for here, there in (([0, 8], [8, 0]), (np.arange(9), env.random.permutation(9))):
        expected.take(writer.memory, there, here)
        writer.write(road, (here, there))
        wrong = target.memory.difference(expected)
        assert not wrong, wrong
    writer.remove_peer(road)
    left = Drawing(9, tuple((at, 333) for at in shape.offsets()["kv"][:4]))
    for node in (writer, target):
        node.deregister(node.regions()[4:])
    _write(env, writer, target, left, 2)


@check("KV-MEM-6")
def test_deregistering_what_is_unknown_and_registering_again(env: Env) -> None:
    """deregister_memory() ignores regions that are not registered, and undoes the registration of the others in the same call;
    what was deregistered can be registered again, and is reached by a descriptor made then.

    If this fails, look for a lookup that raises, a loop that ends at the first unknown region, or a descriptor that is kept
    from the time before.
    """
    writer, target = _unregistered(env)
    three = DRAWN.first(STAY + 1)
    ends = list(zip((writer, target), draw_both(writer, target, three), strict=True))
    for node, regions in ends:
        node.deregister(regions)
        node.register(regions[:STAY])
    visible = bool(reach(writer, target, three, 1))
    stranger = Region(50, ends[1][1][0].address + 8, 24)
    for generation in (2, 4):
        for node, regions in ends:
            node.register(regions[STAY:])
        _write(env, writer, target, three, generation)
        for node, regions in ends:
            node.deregister([stranger, *regions[STAY:], stranger])
        if visible:
            _stays_out_of_reach(writer, target, generation + 1, "it was deregistered, with unknown regions before it")
        for node, regions in ends:
            node.deregister(regions[STAY:])
    _write(env, writer, target, three.first(STAY), 6)


@check("KV-MEM-7")
def test_memory_that_is_not_there_makes_no_manager(env: Env) -> None:
    """create_manager() raises RegistrationError, with the region and the errno ENOMEM, for host memory that is not mapped in
    this process, and leaves nothing behind: no thread, no open file, no memory that can't be registered by the next one.

    If this fails, look at a manager class of the backend's own, and at what close() ends of a transport whose registration
    was refused.
    """
    node = env.face(Role.DECODE, BYTES)
    attempts: list[tuple[Mapping[str, object], int | None]] = [({}, 1)]
    refusing = env.harness.setting(Role.DECODE, Fault.REGISTRATION)
    if refusing is not None and refusing.refused_region is not None and not refusing.environment:
        attempts.append((refusing.options, refusing.refused_region))
    for options, region in attempts:
        attempt: Attempt = node.call(attempt_manager, options, not options, limit_s=SETTLE_S)
        assert attempt.error is not None, "create_manager() raised nothing"
        assert isinstance(attempt.error, RegistrationError), (
            f"expected RegistrationError, seen {type(attempt.error).__name__}: {attempt.error}"
        )
        assert attempt.error.region == region, f"expected region {region}, seen {attempt.error.region}: {attempt.error}"
        assert attempt.error.errno or options, f"expected errno ENOMEM, seen {attempt.error.errno}: {attempt.error}"
        assert not attempt.threads, f"threads that were not there before create_manager() failed: {attempt.threads}"
        assert not attempt.files, f"open files that were not there before create_manager() failed: {attempt.files}"
    after: Attempt = node.call(attempt_manager, {}, False)
    assert after.error is None, f"the same memory, and it is all there: create_manager() raised {after.error}"


# -- what the checks have in common --------------------------------------------------------------------------------


def _unregistered(env: Env) -> tuple[WireNode, WireNode]:
    """Two ends of which nothing is registered."""
    writer, target = (env.wire(role, BYTES, register=False, wait=False) for role in (Role.PREFILL, Role.DECODE))
    writer.process.started()
    target.process.started()
    return writer, target


def _refused(
    node: WireNode, good: Sequence[Region], last: Region, position: int, *, made: bool
) -> RegistrationError | None:
    """Register the good ones and a bad one, at this position. ``made``: the harness has made the engine refuse it; otherwise
    by memory that engines don't take, until one is refused. None: every one was taken.
    """
    for bad in [last] if made else _bad(last, node.regions()):
        regions = [*good[:position], bad, *good[position:]]
        try:
            node.register(regions)
        except RegistrationError as error:
            return error
        except KVCoreError as error:
            raise AssertionError(
                f"expected RegistrationError for {bad}, seen {type(error).__name__}: {error}"
            ) from error
        node.deregister(regions)
        assert not made, "the harness says that its setting makes the engine refuse a region, and all were registered"
    return None


def _bad(region: Region, whole: Sequence[Region]) -> Iterator[Region]:
    """Memory that an engine may refuse: of devices that are not there, across the end of a registered range, not mapped."""
    for kind in (MemoryKind.CUDA, MemoryKind.ROCM):
        yield Region(region.index, region.address, region.nbytes, kind, NO_DEVICE, region.pool)
    yield Region(region.index, whole[0].address + 1024 - 64, 128, pool=region.pool)
    yield Region(region.index, 1 << 46, region.nbytes, pool=region.pool)


def _stays_out_of_reach(writer: WireNode, target: WireNode, generation: int, why: str) -> None:
    """The first buffer of those that come and go. Seen only where a backend refuses what was never registered."""
    before = target.memory.image()
    answer = reach(writer, target, DRAWN.first(STAY + 1), generation)
    assert answer, f"a peer could write into memory that is not registered: {why}"
    wrong = target.memory.difference(before)
    assert not wrong, f"a peer's write was refused ({answer}), and written all the same: {wrong}"


def _write(env: Env, writer: WireNode, target: WireNode, drawing: Drawing, generation: int) -> None:
    """Meet with this drawing, write items, compare, and forget the peer."""
    draw_both(writer, target, drawing)
    road = writer.meet(target, generation)
    _move(env, writer, target, road, drawing)
    writer.remove_peer(road)


def _move(
    env: Env, writer: WireNode, target: WireNode, road: Road, drawing: Drawing, layers: range | None = None
) -> None:
    """Write all items, from and to random places, into poisoned memory, and compare all of it."""
    target.memory.poison()
    here, there = env.random.permutation(drawing.items), env.random.permutation(drawing.items)
    expected = target.memory.image()
    drawing.take(expected, there, writer.memory, here, drawing, layers)
    writer.write(road, (here, there), layers=layers)
    wrong = target.memory.difference(expected)
    assert not wrong, wrong


def _deregister_one_by_one(env: Env, writer: WireNode, target: WireNode) -> None:
    """Deregister the buffers of ``NESTED``, the last two first: what is left must be usable each time, in full."""
    regions = list(zip((writer, target), draw_both(writer, target, NESTED), strict=True))
    for left in (6, 4, 2):
        drawing = NESTED.first(left)
        for node, all_of_it in regions:
            node.deregister(all_of_it[left : left + 2])
        draw_both(writer, target, drawing)
        road = writer.meet(target, 7 - left)
        for layer in range(0, left, 2):
            _move(env, writer, target, road, drawing, range(layer, layer + 2))
        writer.remove_peer(road)
