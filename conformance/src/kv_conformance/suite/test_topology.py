"""KV-TOPO: what a transport makes of plans between ranks of unequal topologies. ``test_topology_rooms`` has those of rooms."""

from __future__ import annotations

from kv_conformance.catalog import check
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.memory import Image
from kv_conformance.suite.cache import Cache, Model, Side
from kv_conformance.suite.in_node_topology import (
    BLOCKS,
    LAYERS_LEFT_OUT,
    POOLS_LEFT_OUT,
    REGIONS,
    REPEATS,
    SLICES,
    SMALLER,
    TINY,
)
from kv_conformance.suite.topologies import Rank, pair_up, ranks
from kv_conformance.suite.topology_faces import Instances
from kv_conformance.suite.topology_wires import Wires
from kv_core import Capability

WRITERS = 4
ROUNDS = 6


@check("KV-TOPO-1", reaches=(REPEATS,))
def test_lanes_that_repeat(env: Env) -> None:
    """A lane's piece repeats ``inner_count`` times in each item, at a stride of its own on each side, from an offset of its own:
    all of them arrive where the plan says, and nothing between them is touched.

    If this fails, look at whether you take local_offset, local_stride and local_inner_stride for the local side, and the
    remote ones for the other; batch.copies() has worked all of it out.
    """
    wires = Wires(env)
    model = Model(heads=6, tokens=12)
    for here, there in ((2, 1), (1, 3), (2, 3), (3, 2)):
        wires.carry(model, Side(tp=here, page=4), Side(tp=there, page=4))


@check("KV-TOPO-2", reaches=(SMALLER,), gate=False)
def test_items_that_are_parts_of_pages(env: Env) -> None:
    """With pages of other sizes a plan's items may be the smaller pages on both sides: then there are more of them than the larger
    side has pages, and a lane's stride is that of an item, not that of a page.

    If this fails, look at what you hold item numbers against: a region's length and the lane's stride, never a number of pages.
    """
    wires = Wires(env)
    model = Model(heads=2, tokens=24, head_bytes=7)
    for here, there in ((4, 2), (2, 4), (8, 1)):
        wires.carry(model, Side(page=here), Side(page=there))
    wires.carry(model, Side(tp=2, page=4), Side(page=2))
    wires.carry(model, Side(page=2), Side(tp=2, page=8))


@check("KV-TOPO-3", reaches=(SLICES,))
def test_several_slices_of_one_pool(env: Env) -> None:
    """A batch may have several slices of the same pool, each with items and lanes of its own: each moves its items on its lanes, and
    on no others.

    If this fails, look for what you keep by a pool's name, and for lanes that you take by their place and not by their number.
    """
    wires = Wires(env)
    model = Model(tokens=16, head_bytes=6)
    for here, there in ((4, 2), (2, 8)):
        wires.carry(model, Side(page=here, order="HND"), Side(page=there, order="HND"))
    wires.carry(model, Side(page=2, fused=True), Side(tp=2, page=4, fused=True))


@check("KV-TOPO-4", reaches=(REGIONS,), gate=False)
def test_sides_with_other_buffers(env: Env) -> None:
    """The two sides may have different numbers of buffers, so that a buffer has another number here than there: a plan's local regions are positions in
    ``local_regions``, its remote ones positions in ``remote_regions``. (State items if STATE is declared, rows if AUX is.)

    If this fails, look for one number that is taken for both sides, and for regions that are found by a buffer's layer.
    """
    wires = Wires(env)
    channels, groups = (4, 2) if env.declares(Capability.STATE) else (0, 0)
    model = Model(layers=4, tokens=8, row=9, channels=channels, groups=groups)
    wires.carry(model, Side(pp=2), Side())
    wires.carry(model, Side(fused=True), Side(pp=2))
    wires.carry(model, Side(tp=2), Side(fused=True))
    wires.carry(Model(layers=4, head_bytes=24, tokens=8, latent=True, row=9), Side(), Side(pp=2))


@check("KV-TOPO-5", reaches=(TINY,), gate=False)
def test_thousands_of_tiny_pieces(env: Env) -> None:
    """A page may be thousands of pieces of a byte or two, which lie apart on the one side and next to each other on the other: all of
    them arrive, in batches of as many copies as kv-core makes at most.

    If this fails, look at how copies are counted (items, times lanes, times repeats), at the engine's limit of them in one
    call, and at what it does with a length below a word's.
    """
    wires = Wires(env)
    model = Model(layers=4, heads=16, head_bytes=1, tokens=48)
    wires.carry(model, Side(page=16), Side(page=16, order="HND"))
    wires.carry(model, Side(page=16, order="HND"), Side(page=16, fused=True))


@check("KV-TOPO-6", reaches=(LAYERS_LEFT_OUT, POOLS_LEFT_OUT), gate=False)
def test_plans_that_leave_something_out(env: Env) -> None:
    """A plan may leave out layers, and whole pools, that both sides have: others send them. What is in it moves, and the rest of
    the target's memory stays as it is.

    If this fails, look for a pool that is taken to be there, the first or the last of the plan, and for a lane of each buffer.
    """
    wires = Wires(env)
    wires.carry(Model(layers=6, head_bytes=40, latent=True, row=24), Side(tp=4), Side())
    wires.carry(Model(layers=4, row=24), Side(pp=2), Side())
    if env.declares(Capability.STATE):  # the only latent layer comes from the first rank, channels come from each
        wires.carry(Model(layers=1, head_bytes=40, latent=True, channels=8, row=24), Side(tp=4), Side())


@check("KV-TOPO-7", requires=Capability.STATE, reaches=(BLOCKS,), gate=False)
def test_state_that_is_cut_in_blocks(env: Env) -> None:
    """An item of state may consist of blocks, of which tensor parallelism shares out each by itself, and the pages of a window are
    shared like others: every rank gets its part of each. Without STATE a manager with such pools is refused.

    If this fails, look for state items that are copied whole, from the item's beginning, or with the lanes of another pool.
    """
    model = Model(channels=8, groups=4, window=True, tokens=12)
    Instances(env, model, Side(tp=2), Side()).moves()
    wires = Wires(env)
    for here, there in ((2, 1), (1, 2), (4, 2)):
        wires.carry(model, Side(tp=here), Side(tp=there))
    wires.carry(model, Side(tp=2, fused=True), Side(tp=4))


@check("KV-TOPO-8", gate=False)
def test_writers_side_by_side(env: Env) -> None:
    """Several peers may write into the same pages at the same time, each the bytes between the other ones': no byte of a neighbour
    is touched, also where pieces are shorter than a word or a cache line.

    If this fails, look for what is read, changed and written back, and for copies that are rounded up.
    """
    wires = Wires(env, WRITERS)
    side = Side(tp=WRITERS, page=8)
    model = Model(heads=WRITERS, head_bytes=3, tokens=64)
    for _ in range(ROUNDS):
        cache = Cache(model, env.random, side.page)
        receiver = Rank(cache, Side(page=8), 0, 0)
        image = wires.target.play(receiver)
        expected = Image(receiver.shape, image.whole.copy())
        receiver.expect(expected)
        senders = []
        for writer, rank in zip(wires.writers, ranks(cache, side), strict=True):
            road = wires.begin(writer, rank)
            assert road is not None, f"rank {rank.tp_rank} has nothing to send"
            senders.append((writer.node, road, pair_up(rank, receiver)))
        for node, road, placed in senders:
            node.process.tell("submit_pages", road.prepared, placed)
        numbers = [node.process.answer("submit_pages") for node, _, _ in senders]
        for (node, road, _), own in zip(senders, numbers, strict=True):
            node.finish(*own)
            node.remove_peer(road)
        wires.compare(expected, f"{WRITERS} writers at once")
