"""Digests at both ends, and auxiliary rows over the control channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xxhash

from core.tests.transfer.support import ALL, POISON, Bench, Memory, bench, pair_of, settings, until
from kv_core.contract.enums import Capability, MemoryKind, Role
from kv_core.contract.memory import Topology
from kv_core.contract.transport import PoolSlice
from kv_core.layout import Batch, make_batch, plan_transfer, segments
from kv_core.protocol.chunks import ChunkResult
from kv_core.protocol.effects import VerifyDigests
from kv_core.protocol.lifecycle import Phase
from kv_core.protocol.messages import ChunkDigest
from kv_core.protocol.peers import Peer
from kv_core.protocol.rooms import Offer, Room, RoomLink
from kv_core.runtime.transfer import AuxDataCodec
from kv_core.runtime.transfer.digest import DIRECT_BYTES, Hasher

PLACE = Topology()


def plan_between(source: Memory, target: Memory):
    """The plan that the source makes."""
    return plan_transfer(source.layout, target.layout, local_topology=PLACE, remote_topology=PLACE)


def straight(memory: Memory, batch: Batch) -> int:
    """The digest by the definition: the segments, one after the other."""
    stream, view = xxhash.xxh3_64(), memory.view()
    for region, offset, length in zip(*(column.tolist() for column in segments(batch)), strict=True):
        stream.update(view.view(region)[offset : offset + length].tobytes())
    return stream.intdigest()


@pytest.mark.parametrize("page_bytes", [1, 64, DIRECT_BYTES - 8, DIRECT_BYTES, 300_001])
@pytest.mark.parametrize("pages", [[0], [3, 4, 5, 6], [6, 1, 4, 1], [5, 4, 3]])
def test_the_digest_is_that_of_the_segments(page_bytes, pages):
    source = Memory(pages=8, layers=1, page_bytes=page_bytes, seed=5)
    items = np.array(pages, np.uint64)
    rows = np.array([2, 0], np.uint64)
    batch = make_batch(plan_between(source, source), (items, items, None), {"state": (rows, rows)}, (3, 3))
    assert Hasher(source.view()).digest(batch) == straight(source, batch)


def test_more_items_than_fit_into_the_scratch_buffer():
    source = Memory(pages=9_000, layers=1, page_bytes=300, seed=6)
    items = np.random.default_rng(1).permutation(9_000).astype(np.uint64)
    batch = make_batch(plan_between(source, source), (items, items, None))
    assert Hasher(source.view()).digest(batch) == straight(source, batch)


@pytest.mark.parametrize("inner", [16, 20])
@pytest.mark.parametrize("pages", [[1, 2, 3], [7, 0, 3]])
def test_lanes_that_take_pieces_of_items(inner, pages):
    """What unequal topologies will make: 3 pieces of 16 bytes, ``inner`` bytes apart, from offset 8 of each item."""
    source = Memory(pages=8, layers=1, page_bytes=128, seed=8)
    kv = plan_between(source, source).pools[0]
    full = np.ones(kv.num_lanes, np.uint64)
    pieces = type(kv)(
        kv.pool, kv.layer, kv.local_region, kv.remote_region, full * np.uint64(8), full * np.uint64(8), kv.local_stride,
        kv.remote_stride, full * np.uint64(16), full * np.uint64(3), full * np.uint64(inner), full * np.uint64(inner),
    )  # fmt: skip
    items = np.array(pages, np.uint64)
    batch = Batch([PoolSlice(pieces, np.arange(kv.num_lanes), items, items)])
    assert Hasher(source.view()).digest(batch) == straight(source, batch)


def test_an_item_outside_of_its_region_is_refused():
    source = Memory(pages=8, layers=1, seed=5)
    items = np.array([8], np.uint64)
    batch = make_batch(plan_between(source, source), (items, items, None))
    with pytest.raises(ValueError, match="item 8 ends at byte 576 of a region of 512 bytes"):
        Hasher(source.view()).digest(batch)


class Arrival:
    """A decode side in this process: it verifies what a bench has sent to it."""

    def __init__(self, b: Bench, source: Memory) -> None:
        self.b = b
        pair = pair_of(b.source, source, Role.DECODE)
        self.peer = Peer("prefill", 1, "tcp://127.0.0.1:1", None, layout=pair)  # type: ignore[arg-type]

    def verify(
        self, offer: Offer, digests: list[ChunkDigest], aux_rows: tuple[bytes, ...] = (), phase: Phase | None = None
    ) -> str | None:
        """The answer."""
        room = Room(Role.DECODE, 1, 1, "127.0.0.1:8998", 0.0)
        room.offer = offer
        if phase is not None:
            room.phase = phase
        link = RoomLink(room, self.peer, 1)
        self.b.engine.put(VerifyDigests(room, link, tuple(digests), aux_rows))
        until(lambda: any(about is link for about, _ in self.b.sink.told("verified")))
        answers = [problem for about, problem in self.b.sink.told("verified") if about is link]
        assert len(answers) == 1
        return answers[0]


def sent(b: Bench, local: list[int], remote: list[int], **fields: Any) -> tuple[ChunkResult, Memory]:
    """What a chunk with a digest resulted in, and where it landed."""
    chunk = b.submit(b.peer("decode"), local, remote, digest=True, **fields)
    until(lambda: b.has_landed(chunk))
    return b.sink.landed_chunks[id(chunk)], b.targets["decode"]


def u64(*items: int) -> np.ndarray:
    """Indices."""
    return np.array(items, np.uint64)


def test_what_arrived_whole_is_verified():
    with bench() as b:
        result, target = sent(b, [5, 2, 9], [0, 7, 3], states={"state": (0, u64(1, 3), u64(2, 0))}, aux=(1, 2))
        assert result.digest is not None
        assert (result.digest.count, result.digest.first_layer, result.digest.stop_layer) == (3, 0, 2)
        assert result.digest.states == {"state": (0, 2)}
        assert result.digest.aux
        with bench(source=target) as d:
            offer = Offer(u64(0, 7, 3), {"state": u64(2, 0)}, 2)
            assert Arrival(d, b.source).verify(offer, [result.digest]) is None


def test_chunks_by_layers_and_by_pages_are_verified_each():
    with bench() as b:
        first, target = sent(b, [5, 2], [0, 7], layers=range(1))
        with bench(source=target) as d:
            digest = first.digest
            assert digest is not None
            arrival = Arrival(d, b.source)
            assert arrival.verify(Offer(u64(0, 7)), [digest]) is None
            shifted = type(digest)(1, 2, 0, 1, {}, False, digest.digest)
            assert arrival.verify(Offer(u64(9, 0, 7)), [shifted]) is None


@pytest.mark.parametrize("pool", ["kv", "state", "aux"])
def test_one_flipped_bit_is_caught_and_named(pool):
    with bench() as b:
        result, target = sent(b, [5, 2], [0, 7], states={"state": (0, u64(1), u64(2))}, aux=(1, 2))
        digest = result.digest
        assert digest is not None
        target.arrays[pool][-1][{"kv": 7, "state": 2, "aux": 2}[pool], 3] ^= 1
        with bench(source=target) as d:
            problem = Arrival(d, b.source).verify(Offer(u64(0, 7), {"state": u64(2)}, 2), [digest])
        assert problem is not None
        assert problem.startswith(
            "pages 0 to 2 on layers 0 to 1 and 1 items of state 'state' from 0 and the auxiliary row: prefill read bytes "
            f"with digest {digest.digest:016x}, here arrived bytes with digest "
        )


@pytest.mark.parametrize(
    ("digest", "expected"),
    [
        (ChunkDigest(1, 2, 0, 2, {}, False, 1), "a digest came for pages 1 to 3, but the room offered 2"),
        (ChunkDigest(0, 2**63 - 1, 0, 2, {}, False, 1), "but the room offered 2"),
        (ChunkDigest(0, 1, 0, 2, {"mamba": (0, 1)}, False, 1), "state pool 'mamba', which the room did not offer"),
        (ChunkDigest(0, 1, 0, 2, {"state": (1, 1)}, False, 1), "items of state 'state' 1 to 2, but the room offered 1"),
        (ChunkDigest(0, 1, 0, 2, {}, True, 1), "an auxiliary row, which the room did not offer"),
        (ChunkDigest(0, 1, -(2**63), 2**64 - 1, {}, False, 1), "here arrived bytes with digest"),
    ],
)
def test_a_digest_from_a_peer_is_checked_before_it_is_used(digest, expected):
    with bench() as d:
        problem = Arrival(d, Memory()).verify(Offer(u64(0, 7), {"state": u64(2)}), [digest])
        assert expected in str(problem)


def test_a_room_that_has_ended_is_answered_and_not_written():
    with bench() as d:
        rows = (b"x" * 24, b"y" * 8)
        problem = Arrival(d, Memory()).verify(Offer(u64(0), {}, 1), [], rows, Phase.FAILED)
        assert problem == "the room ended before its bytes were verified"
        assert bytes(d.source.arrays["aux"][0][1]) != b"x" * 24


def test_a_layout_that_is_not_known_is_a_problem_and_no_crash():
    with bench() as d:
        arrival = Arrival(d, Memory())
        arrival.peer.layout = None
        problem = arrival.verify(Offer(u64(0)), [ChunkDigest(0, 1, 0, 2, {}, False, 1)])
        assert problem == "TypeError: the layout of peer prefill is not known here"
        assert d.engine.health()["kv-transfer"]["exceptions"] == 1


def test_auxiliary_rows_by_message_are_written_and_covered_by_the_digest():
    capabilities = ALL - {Capability.AUX}
    with bench(capabilities=capabilities) as b:
        result, target = sent(b, [5], [6], aux=(3, 1))
        assert result.digest is not None
        assert result.digest.aux
        with bench(source=target, capabilities=capabilities) as d:
            arrival = Arrival(d, b.source)
            assert arrival.verify(Offer(u64(6), {}, 1), [result.digest], result.aux_rows) is None
            for ours, theirs in zip(target.arrays["aux"], b.source.arrays["aux"], strict=True):
                assert (ours[1] == theirs[3]).all()
                assert (ours[[0, 2, 3]] == POISON).all()
            wrong = (bytes(24), result.aux_rows[1])
            assert "with digest" in str(arrival.verify(Offer(u64(6), {}, 1), [result.digest], wrong))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((b"x" * 24,), "has 2 buffers of [24, 8] bytes here, and one with 1 of [24] bytes arrived"),
        ((b"x" * 8, b"y" * 24), "and one with 2 of [8, 24] bytes arrived"),
        ((b"",) * 100, "and one with 100 of [0, 0, 0, 0, 0, 0, 0, 0]... bytes arrived"),
    ],
)
def test_auxiliary_rows_of_another_shape_are_refused_and_nothing_is_written(rows, expected):
    with bench(source=Memory()) as d:
        problem = Arrival(d, Memory()).verify(Offer(u64(0), {}, 1), [], rows)
        assert expected in str(problem)
        assert all((array == POISON).all() for array in d.source.arrays["aux"])


def test_auxiliary_rows_that_nobody_asked_for_are_refused():
    with bench() as d:
        problem = Arrival(d, Memory()).verify(Offer(u64(0)), [], (b"x" * 24, b"y" * 8))
        assert problem == "an auxiliary row arrived, but the room offered no aux_index"


def test_the_codec_alone():
    source, target = Memory(seed=4), Memory()
    rows = AuxDataCodec(source.layout, source.view()).encode(2)
    assert [len(row) for row in rows] == [24, 8]
    codec = AuxDataCodec(target.layout, target.view())
    codec.decode(0, rows)
    assert codec.encode(0) == rows
    for row in (-1, 4):
        with pytest.raises(ValueError, match=f"auxiliary row {row} does not exist: there are 4"):
            codec.encode(row)
        with pytest.raises(ValueError, match="does not exist"):
            codec.decode(row, rows)


def test_digests_of_device_memory_fail_the_room_with_a_sentence():
    source = Memory(seed=1, kind=MemoryKind.CUDA)
    with bench(source=source) as b:
        peer = b.peer("decode")
        chunk = b.submit(peer, [1], [1], digest=True)
        until(lambda: b.failure(chunk))
        message, quiescent = b.failure(chunk) or ("", False)
        assert message.startswith("ValueError: pool 'kv' is in cuda memory: digests, and auxiliary rows over")
        assert quiescent
        assert b.transport.posted == []


def test_a_digest_does_not_keep_a_chunk_from_being_split():
    config = settings(max_batch_descriptors=4)
    with bench(config=config) as b:
        result, target = sent(b, [5, 2, 9], [0, 7, 3])
        assert len(b.transport.posted) == 3
        assert result.digest is not None
        with bench(source=target) as d:
            assert Arrival(d, b.source).verify(Offer(u64(0, 7, 3)), [result.digest]) is None
