"""Small pieces by way of the staging area: bytes, room in it, failures, and when it is not used at all."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any, ClassVar

import numpy as np
import pytest

from core.tests.transfer.support import (
    ALL,
    POISON,
    BlockingDouble,
    DoubleTransport,
    RecordingSink,
    quiescent_error,
    settings,
    until,
)
from core.tests.transfer.test_pulling import Reader
from kv_core.contract.enums import Direction, Role, ThreadingModel
from kv_core.contract.items import ItemLayout
from kv_core.contract.memory import Buffer, KVArgs, Pool, Topology
from kv_core.layout import MemoryLayout
from kv_core.protocol.chunks import TransferKVChunk
from kv_core.protocol.effects import AddPeer, RemovePeer, SubmitChunk
from kv_core.protocol.lifecycle import Phase
from kv_core.protocol.liveness import PeerLiveness
from kv_core.protocol.peers import Peer
from kv_core.protocol.rooms import Room, RoomLink
from kv_core.runtime.rules import Pair, Place
from kv_core.runtime.transfer import TransferEngine, staging
from kv_core.runtime.transfer.staging import SHARES

SEED = 11
TOKENS, HEADS, HEAD_BYTES, LAYERS, PAGES, ROWS = 4, 4, 16, 3, 24, 4
PAGE_BYTES = TOKENS * HEADS * HEAD_BYTES
ROWS_BYTES = LAYERS * PAGE_BYTES
"""What a page's share of one of two ranks takes of the area."""
ROW = LAYERS * 2 * PAGE_BYTES // 2 + LAYERS * 2 * 64
"""More than a page's share of one of two ranks takes, with a state item's."""


class Shard:
    """One rank's KV pages (NHD) and convolution states, cut from those of the whole model."""

    def __init__(
        self, tp_rank: int, tp_size: int, *, filled: bool, order: str = "NHD", shift: int = 0, apart: bool = False
    ) -> None:
        self.topology = Topology(tp_rank=tp_rank, tp_size=tp_size)
        self.held = slice(tp_rank * HEADS // tp_size, (tp_rank + 1) * HEADS // tp_size)
        rng = np.random.default_rng(SEED)
        shape = (2 * LAYERS, PAGES, TOKENS, HEADS, HEAD_BYTES)
        whole = rng.integers(1, 255, shape, np.uint8)
        states = rng.integers(1, 255, (LAYERS, ROWS, 3, 8, 2), np.uint8)
        channels = slice(tp_rank * 8 // tp_size, (tp_rank + 1) * 8 // tp_size)
        self.expected = {"kv": whole[:, :, :, self.held], "conv": states[:, :, :, channels]}
        # Rows of memory of which the engine got the part behind ``shift``: buffers need not be aligned.
        self._raw: list[np.ndarray] = []
        self._apart = apart  # every other buffer far away from its neighbours
        self.arrays: dict[str, list[np.ndarray]] = {}
        pages = ItemLayout.page(TOKENS, HEADS, HEAD_BYTES, tp_size=tp_size, order=order)
        rows = ItemLayout.state([("x", 8, 2)], tp_size=tp_size, rows=3)
        kv = [
            self._buffer("kv", data, n // 2, "kv"[n % 2], pages, filled, shift)
            for n, data in enumerate(self.expected["kv"])
        ]
        conv = [self._buffer("conv", data, n, "", rows, filled, shift) for n, data in enumerate(self.expected["conv"])]
        self.args = KVArgs(
            Pool("kv", tuple(kv)), states=(Pool("conv", tuple(conv)),), page_size=TOKENS, topology=self.topology
        )
        self.layout = MemoryLayout.of(self.args)
        self.place = Place(self.layout, self.topology, TOKENS)

    def _buffer(
        self, pool: str, data: np.ndarray, layer: int, part: str, item: ItemLayout, filled: bool, shift: int
    ) -> Buffer:
        raw = np.full(data.size + shift, POISON, np.uint8)
        if self._apart and len(self._raw) % 2:
            raw = np.frombuffer(mmap.mmap(-1, raw.size), np.uint8)
            raw[:] = POISON
        self._raw.append(raw)
        array = raw[shift:].reshape(data.shape)
        if filled:
            array[...] = data
        self.arrays.setdefault(pool, []).append(array)
        length = data[0].size
        return Buffer(array.ctypes.data, length, data.shape[0], layer, part, item)

    def got(self, pool: str, here: list[int], there: list[int], layers: range = range(LAYERS)) -> bool:
        """Whether these items are the model's items ``there``, on these layers, and everything else is poison."""
        for n, (array, wanted) in enumerate(zip(self.arrays[pool], self.expected[pool], strict=True)):
            picture = np.full_like(array, POISON)
            if (n // 2 if pool == "kv" else n) in layers:
                picture[here] = wanted[there]
            if not np.array_equal(picture, array):
                return False
        return True


class Writer(DoubleTransport):
    """Small pieces cost it dearly."""

    staging_below: ClassVar[int] = 4_096


class StagedReader(Reader):
    """The same for reads."""

    staging_below: ClassVar[int] = 4_096


class BlockingWriter(BlockingDouble):
    """Its ``submit`` may block."""

    threading = ThreadingModel.BLOCKING
    staging_below: ClassVar[int] = 4_096


class Stage:
    """An engine that moves the bytes of one rank, and peers in this process."""

    def __init__(self, transport: DoubleTransport, mine: Shard, **config: Any) -> None:
        self.mine, self.transport, self.sink = mine, transport, RecordingSink()
        self.reads = isinstance(transport, Reader)
        self.role = Role.DECODE if self.reads else Role.PREFILL
        self.engine = TransferEngine(
            transport, mine.layout, settings(**{"staging_bytes": 1 << 20, **config}), self.sink, monotonic,
            logging.getLogger("test.staging"), capabilities=ALL, direction=Direction.READ if self.reads else Direction.WRITE,
        )  # fmt: skip
        transport.register_memory(mine.layout.regions())
        self.engine.start()
        self._numbers = iter(range(1, 1000))
        self._kept: list[Shard] = []

    def peer(self, theirs: Shard, name: str = "peer") -> Peer:
        self._kept.append(theirs)
        layout = Pair(self.role, self.mine.place, theirs.place)
        peer = Peer(name, 1, "tcp://127.0.0.1:1", PeerLiveness(1.0, 2, 5, 0.0), layout=layout)
        self.engine.put(AddPeer(peer.key, b"descriptor", layout))
        return peer

    def submit(self, peer: Peer, local: list[int], remote: list[int], **fields: Any) -> TransferKVChunk:
        number = next(self._numbers)
        room = Room(self.role, number, number, "127.0.0.1:8998", 0.0)
        mine, theirs = (np.array(items, np.uint64) for items in (local, remote))
        chunk = TransferKVChunk(room, RoomLink(room, peer, number), peer.key, 0, mine, theirs, **fields)
        chunk.pulled = self.reads
        self.engine.put(SubmitChunk(chunk))
        return chunk

    def landed(self, chunk: TransferKVChunk) -> bool:
        return id(chunk) in self.sink.landed_chunks

    def count(self, name: str) -> int:
        snapshot: Any = self.engine.snapshot()
        return int(snapshot[name] if name in snapshot else snapshot["totals"][name])

    def shares(self, posted: int, rows: int) -> bool:
        """Whether so much was posted, and so many rows are out."""
        return len(self.transport.posted) == posted and self.count("staging_bytes") == rows * ROWS_BYTES

    def rest(self) -> None:
        skipped = {"peers", "totals", "queued_by_shard"}
        until(lambda: not any(v for k, v in self.engine.snapshot().items() if k not in skipped), "rest")


@contextmanager
def stage(transport: DoubleTransport, mine: Shard, *, quiescent: bool = True, **config: Any) -> Iterator[Stage]:
    made = Stage(transport, mine, **config)
    try:
        yield made
    finally:
        assert made.engine.close(2.0 if quiescent else 0.0) is quiescent
    assert not made.transport.breaches
    assert not made.sink.breaches


def u64(*items: int) -> Any:
    return np.array(items, np.uint64)


@pytest.mark.parametrize("shift", [0, 3, 8])
@pytest.mark.parametrize("transport", [Writer, BlockingWriter])
def test_pieces_are_gathered_and_written_in_long_copies(transport, shift):
    theirs = Shard(1, 2, filled=False, shift=5)
    with stage(transport(), Shard(0, 1, filled=True, shift=shift)) as s:
        peer = s.peer(theirs)
        here, there = [3, 4, 9, 1], [7, 0, 1, 20]
        chunk = s.submit(peer, here, there, states={"conv": (0, u64(2), u64(0))})
        until(lambda: s.landed(chunk))
        assert theirs.got("kv", there, here)
        assert theirs.got("conv", [0], [2])
        copies = sum(len(transfer.batch.copies().length) for transfer in s.transport.posted)
        assert copies == 4 * 2 * LAYERS + LAYERS, "a page is one copy in each buffer, a state item another"
        result = s.sink.landed_chunks[id(chunk)]
        assert result.nbytes == 4 * LAYERS * PAGE_BYTES + LAYERS * 3 * 4 * 2
        s.rest()
        assert s.count("staged_batches") == 2


def test_long_runs_are_read_and_scattered():
    mine = Shard(0, 1, filled=False, shift=8)
    with stage(StagedReader(), mine) as s:
        peers = [s.peer(Shard(rank, 2, filled=True), f"peer{rank}") for rank in (0, 1)]
        here, there = [5, 6, 2, 11], [1, 2, 3, 23]
        chunks = [s.submit(peer, here, there, states={"conv": (0, u64(1), u64(3))}) for peer in peers]
        until(lambda: all(map(s.landed, chunks)))
        assert mine.got("kv", here, there)
        assert mine.got("conv", [1], [3])
        s.rest()
        assert s.count("staged_batches") == 4


@pytest.mark.parametrize("reads", [False, True])
def test_buffers_with_all_of_the_heap_between_them(reads):
    """Nothing but the buffers may be touched, and nothing that lies between them may be taken for a part of them."""
    whole, halves = Shard(0, 1, filled=not reads, apart=True), [Shard(rank, 2, filled=reads) for rank in (0, 1)]
    with stage(StagedReader() if reads else Writer(), whole) as s:
        peers = [s.peer(half, f"peer{rank}") for rank, half in enumerate(halves)]
        items = np.random.default_rng(SEED).permutation(PAGES).tolist()
        chunks = [s.submit(peer, items, items[::-1]) for peer in peers for _ in range(5)]
        until(lambda: all(map(s.landed, chunks)))
        assert s.count("staged_batches") == 10
        if reads:
            assert whole.got("kv", items, items[::-1])
        else:
            assert all(half.got("kv", items[::-1], items) for half in halves)
        s.rest()


@pytest.mark.parametrize("reads", [False, True])
def test_some_layers_only(reads):
    whole, half = Shard(0, 1, filled=not reads), Shard(0, 2, filled=reads)
    with stage(StagedReader() if reads else Writer(), whole) as s:
        peer = s.peer(half)
        chunk = s.submit(peer, [8, 3], [0, 1], layers=range(1, 2))
        until(lambda: s.landed(chunk))
        target = whole if reads else half
        if reads:
            for n, array in enumerate(target.arrays["kv"]):
                picture = np.full_like(array, POISON)
                if n // 2 == 1:
                    picture[[8, 3], :, half.held] = half.expected["kv"][n][[0, 1]]
                assert np.array_equal(picture, array)
        else:
            assert half.got("kv", [0, 1], [8, 3], range(1, 2))
        assert s.count("staged_batches") == 1


@pytest.mark.parametrize("reads", [False, True])
def test_an_area_that_is_small_is_used_again_and_again(reads):
    whole, others = Shard(0, 1, filled=not reads), [Shard(rank, 2, filled=reads) for rank in (0, 1)]
    with stage(StagedReader() if reads else Writer(), whole, staging_bytes=3 * ROW) as s:
        peers = [s.peer(other, f"peer{n}") for n, other in enumerate(others)]
        items = np.random.default_rng(SEED).permutation(PAGES).tolist()
        chunks = [s.submit(peer, items, items[::-1]) for _ in range(3) for peer in peers]
        until(lambda: all(map(s.landed, chunks)))
        if reads:
            assert whole.got("kv", items, items[::-1])
        else:
            assert all(other.got("kv", items[::-1], items) for other in others)
        s.rest()
        assert s.count("staged_batches") >= 6 * PAGES // 3
        assert all(transfer.nbytes <= 3 * ROW for transfer in s.transport.posted)


def test_with_digests_the_pages_are_hashed_and_not_the_area():
    theirs = Shard(1, 2, filled=False)
    with stage(Writer(), Shard(0, 1, filled=True)) as s, stage(DoubleTransport(), Shard(0, 1, filled=True)) as plain:
        found = []
        for each in (s, plain):
            chunk = each.submit(each.peer(theirs), [1, 2], [3, 4], digest=True)
            until(partial(each.landed, chunk))
            found.append(each.sink.landed_chunks[id(chunk)].digest)
        assert found[0] == found[1] is not None


def test_a_room_that_ended_meanwhile_gets_nothing_scattered():
    mine = Shard(0, 1, filled=False)
    transport = StagedReader(auto=False)
    with stage(transport, mine) as s:
        chunk = s.submit(s.peer(Shard(0, 2, filled=True)), [1, 2], [3, 4])
        until(lambda: transport.posted)
        assert s.count("staging_bytes") > 0
        chunk.room.phase = Phase.FAILED
        s.engine.put(RemovePeer(chunk.peer))
        until(lambda: s.count("peers") == 0)
        transport.land(transport.posted[0])
        s.rest()
        assert mine.got("kv", [], []), "the bytes came, into the area alone"


def test_rows_come_back_with_quiescence_and_not_before():
    transport = Writer(auto=False)
    with stage(transport, Shard(0, 1, filled=True)) as s:
        peer = s.peer(Shard(0, 2, filled=False))
        s.submit(peer, [1, 2], [3, 4])
        until(lambda: transport.posted)
        taken = s.count("staging_bytes")
        transport.fail(transport.posted[0], "broken", quiescent=False)
        until(lambda: s.sink.failures)
        assert s.count("staging_bytes") == taken > 0
        transport.settle(transport.posted[0])
        s.rest()


def test_a_peer_has_its_share_and_waits_for_its_own_rows():
    transport = Writer(auto=False)
    theirs = Shard(0, 2, filled=False)
    with stage(transport, Shard(0, 1, filled=True), staging_bytes=SHARES * 2 * ROWS_BYTES) as s:
        peer = s.peer(theirs)
        items = list(range(8))
        chunk = s.submit(peer, items, items)
        for landed in range(8):
            until(partial(s.shares, posted=min(landed + 2, 8), rows=min(2, 8 - landed)), "two rows are out")
            transport.land(transport.posted[landed])
        until(lambda: s.landed(chunk))
        assert theirs.got("kv", items, items)
        assert s.count("staged_batches") == 8
        s.rest()


def as_it_is(transport: DoubleTransport, peer: Peer) -> bool:
    """Whether the last thing that was posted to a peer is one page, piece by piece."""
    last = next(transfer for transfer in reversed(transport.posted) if transfer.peer == peer.key)
    return last.batch.num_descriptors == 2 * LAYERS * TOKENS


def test_nobody_waits_for_the_rows_of_another_peer():
    """Not even if peers that are stopped have all of the area: who finds no room goes without."""
    transport = Writer(auto=False)
    stopped = {f"stopped{n}" for n in range(SHARES)}
    transport.frozen = set(stopped)
    theirs = Shard(0, 2, filled=False)
    with stage(transport, Shard(0, 1, filled=True), staging_bytes=SHARES * 2 * ROWS_BYTES) as s:
        for name in sorted(stopped):
            s.submit(s.peer(Shard(1, 2, filled=False), name), list(range(8)), list(range(8)))
        until(lambda: s.count("staging_bytes") == SHARES * 2 * ROWS_BYTES, "the area is full")
        transport.auto = True
        lively = s.peer(theirs, "lively")
        chunk = s.submit(lively, [1, 2, 3], [4, 5, 6])
        until(lambda: s.landed(chunk))
        assert theirs.got("kv", [4, 5, 6], [1, 2, 3])
        assert as_it_is(transport, lively)
        transport.frozen.clear()
        transport.wake()
        s.rest()
        chunk = s.submit(lively, [1], [7])
        until(lambda: s.landed(chunk))
        assert not as_it_is(transport, lively)


def test_nobody_waits_for_rows_that_may_never_come_back():
    transport = Writer(auto=False)
    theirs = Shard(0, 2, filled=False)
    with stage(transport, Shard(0, 1, filled=True), staging_bytes=SHARES * ROWS_BYTES, quiescent=False) as s:
        peer = s.peer(theirs)
        first, second = s.submit(peer, [0], [0]), s.submit(peer, [1], [2])
        until(lambda: len(transport.posted) == 1)
        transport.fail(transport.posted[0], "broken", quiescent=False)
        until(lambda: id(first) in s.sink.failures)
        until(lambda: len(transport.posted) == 2)
        assert as_it_is(transport, peer)
        transport.land(transport.posted[1])
        until(lambda: s.landed(second))
        assert theirs.got("kv", [2], [1])
        assert s.count("staging_bytes") == ROWS_BYTES


@pytest.mark.parametrize("quiescent", [True, False])
def test_an_area_that_may_still_be_touched_outlives_its_engine(quiescent):
    transport, kept = Writer(auto=False), len(staging._abandoned)
    with stage(transport, Shard(0, 1, filled=True), quiescent=quiescent) as s:
        s.submit(s.peer(Shard(0, 2, filled=False)), [1], [2])
        until(lambda: transport.posted)
        if quiescent:
            transport.land(transport.posted[0])
            s.rest()
    assert len(staging._abandoned) == kept + (not quiescent)


def test_a_submission_that_is_refused_gives_its_rows_back():
    transport = Writer()
    with stage(transport, Shard(0, 1, filled=True)) as s:
        peer = s.peer(Shard(0, 2, filled=False))
        transport.raising["submit"] = lambda _peer: quiescent_error()
        chunk = s.submit(peer, [1, 2], [3, 4])
        until(lambda: id(chunk) in s.sink.failures)
        assert s.sink.failures[id(chunk)][1]
        s.rest()


def test_without_memory_for_it_pieces_go_as_they_are():
    transport = Writer()
    theirs = Shard(0, 2, filled=False)
    with stage(transport, Shard(0, 1, filled=True)) as s:
        transport.raising["register_memory"] = lambda _regions: OSError(12, "no memory can be pinned")
        chunk = s.submit(s.peer(theirs), [1, 2], [3, 4])
        until(lambda: s.landed(chunk))
        assert theirs.got("kv", [3, 4], [1, 2])
        assert s.count("staged_batches") == 0
        assert s.engine.health()["kv-transfer"]["exceptions"] == 1


@pytest.mark.parametrize(
    ("below", "staging_bytes", "mine", "theirs"),
    [
        (0, 1 << 20, (0, 1), (0, 2)), (8, 1 << 20, (0, 1), (0, 2)), (4_096, 0, (0, 1), (0, 2)),
        (4_096, 140, (0, 1), (0, 2)), (4_096, 1 << 20, (0, 2), (0, 2)), (4_096, 1 << 20, (0, 2), (0, 1)),
    ],
    ids=["no gain for the transport", "pieces long enough", "switched off", "too small for two items", "whole pages", "apart over there"],
)  # fmt: skip
def test_where_it_gains_nothing_there_is_no_area(below, staging_bytes, mine, theirs):
    transport = Writer()
    type(transport).staging_below = below
    try:
        target = Shard(*theirs, filled=False)
        with stage(transport, Shard(*mine, filled=True), staging_bytes=staging_bytes) as s:
            chunk = s.submit(s.peer(target), [1, 2], [3, 4])
            until(lambda: s.landed(chunk))
            assert s.count("staged_batches") == 0
            assert transport.calls.count("register_memory") == 1
    finally:
        type(transport).staging_below = 4_096


def test_the_area_is_deregistered_with_the_rest():
    transport = Writer()
    with stage(transport, Shard(0, 1, filled=True)) as s:
        chunk = s.submit(s.peer(Shard(0, 2, filled=False)), [1], [2])
        until(lambda: s.landed(chunk))
        assert [region.pool for region in transport.registered][-1] == "staging"
    assert transport.registered == []
