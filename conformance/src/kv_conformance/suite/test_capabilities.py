"""KV-CAP: what a backend declares works, and what it does not declare is refused with NotSupported."""

from __future__ import annotations

from kv_conformance.catalog import check
from kv_conformance.harness import Setting
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.memory import Image, Shape
from kv_conformance.nodes.wire import WireNode
from kv_conformance.outcomes import Untestable
from kv_conformance.suite.in_node_devices import bring_home, take_device_memory
from kv_conformance.suite.in_node_identity import record_of
from kv_core import Capability, Direction, MemoryKind, Pool, Role
from kv_core.contract.transport import Transport
from kv_core.registry.signatures import overrides

PAGES = 16
SHAPE = Shape(kv=(4, PAGES, 512))
METHODS = {Capability.CANCEL: "cancel", Capability.FENCE: "fence", Capability.PROBE: "probe"}
LONGEST_NAME = 60


@check("KV-CAP-1", requires=Capability.WRITE)
def test_write(env: Env) -> None:
    """WRITE: a transport of direction WRITE copies from local into remote memory, and leaves local memory as it is. Undeclared, its
    constructor refuses that direction.

    If this fails, look at which side of a batch submit() reads, and at the constructor.
    """
    writer, target = (env.wire(role, SHAPE, direction=Direction.WRITE, wait=False) for role in Role)
    _started(writer, target)
    before, expected = writer.memory.image(), target.memory.image()
    expected.take(before, [4, 0, 9], [1, 2, 3])
    writer.write(writer.meet(target), ([1, 2, 3], [4, 0, 9]))
    _compare(target, expected, "the written side")
    _compare(writer, before, "the writing side")


@check("KV-CAP-2", requires=Capability.READ)
def test_read(env: Env) -> None:
    """READ: a transport of direction READ copies from remote into local memory, and leaves remote memory as it is. Undeclared, its
    constructor refuses that direction with NotSupported.

    If this fails, look at which side of a batch submit() reads; without READ, begin the constructor with
    ``raise NotSupported("reading from a peer (pull)", "read")`` for Direction.READ.
    """
    reader = env.wire(Role.DECODE, SHAPE, direction=Direction.READ)
    source = env.wire(Role.PREFILL, SHAPE, direction=Direction.READ)
    before, expected = source.memory.image(), reader.memory.image()
    expected.take(before, [4, 0, 9], [1, 2, 3])
    reader.write(reader.meet(source), ([4, 0, 9], [1, 2, 3]))
    _compare(reader, expected, "the reading side")
    _compare(source, before, "the side that was read")


@check("KV-CAP-3", proves=Capability.AUX)
def test_auxiliary_rows(env: Env) -> None:
    """AUX: a batch may hold a row of the auxiliary pool, with pages or alone. Undeclared, no such batch is ever submitted: core
    carries the rows, and they arrive all the same.

    If this fails, look at how submit() finds the regions of a batch: the auxiliary pool is one like any other.
    """
    shape = Shape(kv=(2, PAGES, 64), aux=(2, 4, 40))
    env.pair(shape).move([1, 2, 3], [4, 0, 9], aux=(3, 1))
    if not env.declares(Capability.AUX):
        return  # core keeps such rows away from the transport
    writer, target = env.ends(shape)
    expected = target.memory.image()
    expected.take(writer.memory, [5, 6], [7, 8])
    expected.take(writer.memory, [2], [0], "aux")
    road = writer.meet(target)
    writer.write(road, ([7, 8], [5, 6]), aux=(0, 2))
    _compare(target, expected, "pages and a row in one batch")
    expected.take(writer.memory, [3], [1], "aux")
    writer.write(road, aux=(1, 3))
    _compare(target, expected, "a row in a batch of its own")


@check("KV-CAP-4", requires=Capability.STATE)
def test_states(env: Env) -> None:
    """STATE: a batch may hold items of further pools, of other sizes, beside pages and rows. Undeclared, a manager with such a pool
    is refused with NotSupported.

    If this fails, look at whatever assumes that all regions of a plan have items of one size, or are KV pages.
    """
    shape = Shape(kv=(2, PAGES, 64), states={"mamba": (3, 6, 1000), "window": (1, 9, 7)})
    if not env.declares(Capability.STATE):
        env.face(Role.DECODE, shape)
        return
    writer, target = env.ends(shape)
    expected = target.memory.image()
    expected.take(writer.memory, [5, 6], [7, 8])
    expected.take(writer.memory, [0, 5], [4, 1], "mamba")
    expected.take(writer.memory, [8, 2, 3], [0, 1, 2], "window")
    states = {"mamba": ([4, 1], [0, 5]), "window": ([0, 1, 2], [8, 2, 3])}
    writer.write(writer.meet(target), ([7, 8], [5, 6]), states=states)
    _compare(target, expected, "pages and two states in one batch")


@check("KV-CAP-5", requires=Capability.CUDA)
def test_cuda(env: Env) -> None:
    """CUDA: pools may lie in CUDA memory, on either side or on both. Undeclared, a manager with such a pool is refused with
    NotSupported.

    If this fails, look at how register_memory() treats a region's kind and device_id, and at what else touches addresses.
    """
    _device(env, Capability.CUDA, MemoryKind.CUDA)


@check("KV-CAP-6", requires=Capability.ROCM)
def test_rocm(env: Env) -> None:
    """ROCM: pools may lie in ROCm memory, on either side or on both. Undeclared, a manager with such a pool is refused with
    NotSupported.

    If this fails, look at how register_memory() treats a region's kind and device_id, and at what else touches addresses.
    """
    _device(env, Capability.ROCM, MemoryKind.ROCM)


@check("KV-CAP-7", proves=Capability.EMBEDDED)
def test_embedded(env: Env) -> None:
    """EMBEDDED: the backend needs no hardware, no engine, no service and no settings: rooms move wherever it is installed.

    If this fails, look at what the harness has to provide, and take the capability away if the backend can't do without.
    """
    if not env.declares(Capability.EMBEDDED):
        return  # nothing of the kind is claimed
    missing = env.harness.prerequisites()
    assert not missing, f"EMBEDDED is declared, and the harness knows of prerequisites: {'; '.join(missing)}"
    for role in Role:
        setting = env.harness.setting(role)
        assert setting == Setting(), f"EMBEDDED is declared, and the harness needs settings for {role.value}: {setting}"
    env.pair(SHAPE).good_room()


@check("KV-CAP-8", engine=False)
def test_declared_methods_are_there(env: Env) -> None:
    """The transport has a method of its own for each of CANCEL, FENCE and PROBE that the backend declares.

    If this fails, look at the capabilities in kv_backend(): declare what the transport implements.
    """
    record = record_of(env.backend)
    for capability, method in METHODS.items():
        if capability in record.info.capabilities:
            assert overrides(record.transport, Transport, method), (
                f"{capability.name} is declared, and {record.transport.__qualname__} has no {method}() of its own"
            )


@check("KV-CAP-9")
def test_the_fabric_is_named(env: Env) -> None:
    """describe() names the fabric that is really in use to a peer, in a word or two; a manager's snapshot says the same of each peer
    that it has written to.

    If this fails, look at describe(): a short text without line breaks, the same as long as the fabric is.
    """
    writer, target = (env.wire(role, SHAPE, wait=False) for role in Role)
    pair = env.pair(SHAPE)
    _started(writer, target)
    road = writer.meet(target)
    writer.write(road, ([1], [2]))
    name: object = writer.describe(road)
    assert isinstance(name, str), f"describe() returned {name!r}, expected a text"
    assert name == name.strip() and name.isprintable() and 0 < len(name) <= LONGEST_NAME, (  # noqa: PT018
        f"describe() returned {name!r}, expected a word or two"
    )
    pair.good_room()
    fabrics = pair.prefill.snapshot()["fabrics"]
    assert list(fabrics.values()) == [name], f"the snapshot says {fabrics}, and describe() {name!r} between such peers"


# -- what they share -------------------------------------------------------------------------------------------------------


def _device(env: Env, capability: Capability, kind: MemoryKind) -> None:
    if not env.declares(capability):
        env.face(Role.DECODE, SHAPE, args={"kv": Pool.uniform("kv", [1 << 30], 512, PAGES, kind=kind)})
        return
    here, there = (env.wire(role, SHAPE, register=False, wait=False, name=f"{role.value}-device") for role in Role)
    source, target = (env.wire(role, SHAPE, wait=False, name=f"{role.value}-host") for role in Role)
    _started(here, there, source, target)
    for node in (here, there):
        if not node.call(take_device_memory, type(env.harness), kind):
            raise Untestable(f"the harness allocates no {kind.value} memory here: see Harness.allocate")
    for number, (writer, end) in enumerate(((here, there), (here, target), (source, there))):
        expected = end.memory.image()
        local, remote = [2 * number, 2 * number + 1], [2 * number + 5, 2 * number]
        expected.take(writer.memory, remote, local)
        writer.write(writer.meet(end), (local, remote))
        if end is there:
            end.call(bring_home)
        _compare(end, expected, f"from {writer.process.name} to {end.process.name}")


def _started(*nodes: WireNode) -> None:
    for node in nodes:
        node.process.started()


def _compare(node: WireNode, expected: Image, what: str) -> None:
    wrong = node.memory.difference(expected)
    assert not wrong, f"{what}: {wrong}"
