"""Helpers: memory, rooms, a recording sink, and a transport double that does what a test tells it to.

``DoubleTransport`` moves real bytes inside this process, when it is told to, and notes every breach of the transport
contract that its caller commits. It stands in for what a real fabric can't be made to do on demand: to freeze one peer,
to fail and write later, to raise anywhere, to block for ever in ``submit``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, ClassVar

import numpy as np

from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import Capability, MemoryKind, Role, ThreadingModel, TransferState
from kv_core.contract.failures import TransportError
from kv_core.contract.memory import Buffer, KVArgs, Pool, Region, Topology
from kv_core.contract.transport import (
    PeerKey,
    Prepared,
    Transfer,
    TransferBatch,
    TransferPlan,
    TransferProgress,
    Transport,
    TransportContext,
)  # fmt: skip
from kv_core.layout import MemoryLayout
from kv_core.protocol.chunks import ChunkResult, TransferKVChunk
from kv_core.protocol.effects import AddPeer, SubmitChunk
from kv_core.protocol.lifecycle import Phase
from kv_core.protocol.liveness import PeerLiveness
from kv_core.protocol.messages import ChunkDigest
from kv_core.protocol.peers import Peer
from kv_core.protocol.rooms import Room, RoomLink
from kv_core.runtime.rules import Pair, Place
from kv_core.runtime.transfer import HostMemory, TransferEngine

LIMIT_S = 60.0
POISON = 0xAA
ALL = frozenset({Capability.WRITE, Capability.AUX, Capability.STATE})


def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait until ``condition()`` is true."""
    pause = threading.Event()
    end = monotonic() + LIMIT_S
    while not condition():
        assert monotonic() < end, f"{what} did not come true within {LIMIT_S:g} s"
        pause.wait(0.001)


def settings(**changes: Any) -> TransferConfig:
    """One queue unless a test wants more, so that chunks are posted in the order in which they are put."""
    return TransferConfig(**{"queue_shards": 1, **changes})


class Memory:
    """One side's pools in host memory: ``kv`` (two buffers a layer), ``state`` and ``aux``."""

    def __init__(
        self, pages: int = 16, layers: int = 2, page_bytes: int = 64, *, seed: int | None = None, rows: int = 4,
        aux_bytes: Sequence[int] = (24, 8), kind: MemoryKind = MemoryKind.HOST,
    ) -> None:  # fmt: skip
        self.arrays: dict[str, list[np.ndarray]] = {"kv": [], "state": [], "aux": []}
        generator = None if seed is None else np.random.default_rng(seed)

        def buffer(pool: str, items: int, length: int, layer: int) -> Buffer:
            shape = (items, length)
            array = (
                np.full(shape, POISON, np.uint8)
                if generator is None
                else generator.integers(1, 255, shape, np.uint8, endpoint=True)
            )
            self.arrays[pool].append(array)
            return Buffer(array.ctypes.data, length, items, layer)

        self.args = KVArgs(
            Pool("kv", tuple(buffer("kv", pages, page_bytes, k // 2) for k in range(2 * layers)), kind),
            Pool("aux", tuple(buffer("aux", rows, length, -1) for length in aux_bytes)),
            (Pool("state", tuple(buffer("state", rows, 40, k) for k in range(layers))),),
        )
        self.layout = MemoryLayout.of(self.args)

    def view(self) -> HostMemory:
        """The regions as the engine maps them."""
        return HostMemory(self.layout.regions())


class DoubleTransfer(Transfer):
    """One submission of the double, with what it is to copy."""

    __slots__ = ("batch", "cancelled", "error", "ended", "released", "state", "still", "wire")

    def __init__(self, peer: PeerKey, batch: TransferBatch) -> None:
        super().__init__(peer, batch.nbytes)
        self.batch = batch
        self.state = TransferState.PENDING
        self.error: str | None = None
        self.wire: float | None = None
        self.still = False  # quiescent
        self.ended = False
        self.cancelled = False
        self.released = False


class DoubleTransport(Transport):
    """See the module. ``auto`` lets each transfer land by itself when it is asked about."""

    def __init__(self, config: TransferConfig | None = None, *, auto: bool = True) -> None:
        super().__init__(TransportContext(Role.PREFILL, "double", config or TransferConfig()))
        self.auto = auto
        self.frozen: set[str] = set()  # names of peers to which nothing lands by itself
        self.raising: dict[str, Callable[[Any], BaseException | None]] = {}  # method -> exception for its argument
        self.on_submit: Callable[[Prepared, TransferBatch], None] = lambda prepared, batch: None
        self.breaches: list[str] = []
        self.calls: list[str] = []
        self.threads: dict[str, set[int]] = {}
        self.peers: dict[PeerKey, bytes] = {}
        self.posted: list[DoubleTransfer] = []
        self.live: dict[int, DoubleTransfer] = {}
        self.most_bytes: dict[str, int] = {}
        self.registered: list[Region] = []
        self.waits = 0
        self._memory: HostMemory | None = None
        self._remote: dict[PeerKey, HostMemory] = {}
        self._awake = threading.Event()
        self._lock = threading.Lock()
        self.closed = False

    def _enter(self, method: str, argument: Any = None) -> None:
        if self.closed:
            self.breaches.append(f"{method} after close")
        self.calls.append(method)
        self.threads.setdefault(method, set()).add(threading.get_ident())
        error = self.raising.get(method, lambda _argument: None)(argument)
        if error is not None:
            raise error

    # -- the contract ----------------------------------------------------------------------------------------------

    def register_memory(self, regions: Sequence[Region]) -> None:
        """Keep them."""
        self._enter("register_memory", regions)
        self.registered += regions
        self._memory = HostMemory(self.registered)

    def deregister_memory(self, regions: Sequence[Region]) -> None:
        """Forbidden while something is on its way."""
        self._enter("deregister_memory", regions)
        if any(not transfer.still for transfer in self.live.values()):
            self.breaches.append("deregister_memory before everything was quiescent")
        self.registered = [region for region in self.registered if region not in regions]

    def local_descriptor(self) -> bytes:
        """Nothing: tests say which memory a peer has."""
        return b""

    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        """Know it."""
        self._enter("add_peer", peer)
        self.peers[peer] = descriptor

    def remove_peer(self, peer: PeerKey) -> None:
        """Forget it."""
        self._enter("remove_peer", peer)
        self.peers.pop(peer, None)

    def prepare(self, peer: PeerKey, plan: TransferPlan) -> Prepared:
        """Map the peer's memory, which is in this process too."""
        self._enter("prepare", peer)
        self._remote[peer] = HostMemory(plan.remote_regions)
        return Prepared(peer, plan)

    def submit(self, prepared: Prepared, batch: TransferBatch) -> Transfer:
        """Take it; the bytes move later."""
        self._enter("submit", prepared.peer)
        if prepared.peer not in self.peers:
            self.breaches.append("submit to a peer that was removed")
        if not batch.nbytes:
            self.breaches.append("an empty batch")
        self.on_submit(prepared, batch)
        transfer = DoubleTransfer(prepared.peer, batch)
        with self._lock:
            self.posted.append(transfer)
            self.live[id(transfer)] = transfer
            flying = sum(t.nbytes for t in self.live.values() if t.peer == prepared.peer)
            name = prepared.peer.name
            self.most_bytes[name] = max(self.most_bytes.get(name, 0), flying)
        return transfer

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        """Tell what changed; PENDING ones are left out."""
        self._enter("progress", transfers)
        for transfer in transfers:
            assert isinstance(transfer, DoubleTransfer)
            if transfer.released:
                self.breaches.append("progress of a released transfer")
            if self.auto and transfer.state is TransferState.PENDING and transfer.peer.name not in self.frozen:
                self.land(transfer)
            if transfer.state is not TransferState.PENDING:
                yield TransferProgress(transfer, transfer.state, transfer.still, transfer.error, transfer.wire)

    def release(self, transfer: Transfer) -> None:
        """Once, and not before it is quiescent, unless the end has come."""
        self._enter("release", transfer)
        assert isinstance(transfer, DoubleTransfer)
        if transfer.released:
            self.breaches.append("released twice")
        transfer.released = True
        with self._lock:
            self.live.pop(id(transfer), None)

    def describe(self, peer: PeerKey) -> str:
        """What it is."""
        return "double"

    def wait(self, timeout_s: float) -> None:
        """Until ``wake``, a change, or the time is over."""
        self._enter("wait")
        self.waits += 1
        if timeout_s <= 0:
            self.breaches.append("a wait without a time")
        with self._lock:
            moving = self.auto and any(
                t.peer.name not in self.frozen and t.state is TransferState.PENDING for t in self.live.values()
            )
        if not moving:
            self._awake.wait(timeout_s)
        self._awake.clear()

    def wake(self) -> None:
        """End a wait."""
        self._awake.set()

    def cancel(self, transfer: Transfer) -> None:
        """Note it, and fail the transfer at once, quiescent."""
        self._enter("cancel", transfer)
        assert isinstance(transfer, DoubleTransfer)
        if transfer.cancelled:
            self.breaches.append("cancelled twice")
        transfer.cancelled = True
        self.fail(transfer, "cancelled", quiescent=True)

    def fence(self, peer: PeerKey) -> None:
        """Always works, unless told to raise."""
        self._enter("fence", peer)

    def close(self) -> None:
        """Nothing may follow."""
        self._enter("close")
        self.closed = True

    # -- what a test tells it --------------------------------------------------------------------------------------

    def land(self, transfer: DoubleTransfer, wire: float | None = None) -> None:
        """Copy the bytes: DONE."""
        self.copy(transfer)
        transfer.state, transfer.still, transfer.wire = TransferState.DONE, True, wire
        self.wake()

    def fail(self, transfer: DoubleTransfer, error: str, *, quiescent: bool) -> None:
        """FAILED; nothing is copied."""
        transfer.error, transfer.still, transfer.state = error, quiescent, TransferState.FAILED
        self.wake()

    def settle(self, transfer: DoubleTransfer) -> None:
        """A failed transfer becomes quiescent."""
        transfer.still = True
        self.wake()

    def copy(self, transfer: DoubleTransfer) -> None:
        """Move the bytes."""
        memory, remote = self._memory, self._remote[transfer.peer]
        assert memory is not None
        for lr, lo, rr, ro, n in zip(*(column.tolist() for column in transfer.batch.copies()), strict=True):
            remote.view(rr)[ro : ro + n] = memory.view(lr)[lo : lo + n]


class BlockingDouble(DoubleTransport):
    """The same, declaring the BLOCKING model: ``on_submit`` may block."""

    threading: ClassVar[ThreadingModel] = ThreadingModel.BLOCKING


class RecordingSink:
    """Notes every report, and every report that must not come."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any, Any]] = []
        self.claimed: dict[int, TransferKVChunk] = {}
        self.landed_chunks: dict[int, ChunkResult] = {}
        self.failures: dict[int, tuple[str, bool]] = {}
        self.still: set[int] = set()
        self.breaches: list[str] = []
        self.answer: Callable[[TransferKVChunk], bool] = lambda chunk: not chunk.room.ended
        self.ends_rooms = True

    def claim(self, chunk: TransferKVChunk) -> bool:
        """Yes, while the room lives."""
        if id(chunk) in self.claimed:
            self.breaches.append("claimed twice")
        if not self.answer(chunk):
            return False
        chunk.claimed = True
        self.claimed[id(chunk)] = chunk
        return True

    def readable(self, chunk: TransferKVChunk, digest: ChunkDigest | None, aux_rows: tuple[bytes, ...]) -> None:
        """Once for each claimed chunk, where the peer moves the bytes."""
        self._settle(chunk)
        self.events.append(("readable", chunk, (digest, aux_rows)))

    def landed(self, chunk: TransferKVChunk, result: ChunkResult) -> None:
        """Once for each claimed chunk."""
        self._settle(chunk)
        self.landed_chunks[id(chunk)] = result
        self.events.append(("landed", chunk, result))

    def failed(self, chunk: TransferKVChunk, message: str, quiescent: bool) -> None:
        """Once for each claimed chunk; the room ends with it."""
        self._settle(chunk)
        self.failures[id(chunk)] = (message, quiescent)
        self.events.append(("failed", chunk, (message, quiescent)))
        if self.ends_rooms:
            chunk.room.phase = Phase.FAILED

    def quiescent(self, chunk: TransferKVChunk) -> None:
        """Once, after a failure that was not."""
        if self.failures.get(id(chunk), ("", True))[1]:
            self.breaches.append("quiescent without a failure that was not")
        if id(chunk) in self.still:
            self.breaches.append("quiescent twice")
        self.still.add(id(chunk))
        self.events.append(("quiescent", chunk, None))

    def peer_met(self, peer: PeerKey) -> None:
        """Note it."""
        self.events.append(("peer_met", peer, None))

    def peer_failed(self, peer: PeerKey, message: str) -> None:
        """Note it."""
        self.events.append(("peer_failed", peer, message))

    def peer_refused(self, peer: PeerKey, message: str) -> None:
        """Note it."""
        self.events.append(("peer_refused", peer, message))

    def fenced(self, peer: PeerKey) -> None:
        """Note it."""
        self.events.append(("fenced", peer, None))

    def fence_failed(self, peer: PeerKey) -> None:
        """Note it."""
        self.events.append(("fence_failed", peer, None))

    def verified(self, room: Room, link: RoomLink, problem: str | None) -> None:
        """Note it."""
        self.events.append(("verified", link, problem))

    def _settle(self, chunk: TransferKVChunk) -> None:
        if id(chunk) not in self.claimed:
            self.breaches.append("a report about a chunk that was not claimed")
        if chunk.settled:
            self.breaches.append("two conclusions")
        chunk.settled = True

    def told(self, kind: str) -> list[tuple[Any, Any]]:
        """All reports of a kind: (about what, details)."""
        return [(about, details) for name, about, details in self.events if name == kind]


def pair_of(mine: Memory, theirs: Memory, role: Role = Role.PREFILL) -> Pair:
    """A rank, of prefill if nothing else is said, that looks at one of the other side."""
    return Pair(role, *(Place(memory.layout, Topology(), 16) for memory in (mine, theirs)))


class Bench:
    """An engine over a double, with as many peers as wanted, all in this process."""

    def __init__(
        self, transport: DoubleTransport, config: TransferConfig, capabilities: frozenset[Capability],
        clock: Callable[[], float], source: Memory,
    ) -> None:  # fmt: skip
        self.transport = transport
        self.source = source
        self.sink = RecordingSink()
        self.targets: dict[str, Memory] = {}
        self._kept: list[Memory] = []  # a peer that is replaced may still be written to
        self.engine = TransferEngine(
            transport, source.layout, config, self.sink, clock, logging.getLogger("test.transfer"),
            capabilities=capabilities,
        )  # fmt: skip
        transport.register_memory(source.layout.regions())
        self._numbers = iter(range(1, 1_000_000))

    def peer(self, name: str, generation: int = 1, **shape: Any) -> Peer:
        """A new peer with memory of its own, made known to the engine."""
        peer = self.stranger(name, generation, **shape)
        self.engine.put(AddPeer(peer.key, b"descriptor", peer.layout))
        return peer

    def stranger(self, name: str, generation: int = 1, **shape: Any) -> Peer:
        """A new peer that the engine does not know yet."""
        memory = Memory(**shape) if shape else Memory()
        self.targets[name] = memory
        self._kept.append(memory)
        liveness = PeerLiveness(1.0, 2, 5, 0.0)
        return Peer(name, generation, "tcp://127.0.0.1:1", liveness, layout=pair_of(self.source, memory))

    def chunk(
        self, peer: Peer, local: Sequence[int], remote: Sequence[int], *, room: Room | None = None, **fields: Any
    ) -> TransferKVChunk:
        """A chunk of a new room, or of ``room``."""
        if room is None:
            number = next(self._numbers)
            room = Room(Role.PREFILL, number, number, "127.0.0.1:8998", 0.0)
        link = RoomLink(room, peer, room.life)
        return TransferKVChunk(
            room, link, peer.key, 0, np.array(local, np.uint64), np.array(remote, np.uint64), **fields
        )

    def submit(self, peer: Peer, local: Sequence[int], remote: Sequence[int], **fields: Any) -> TransferKVChunk:
        """Make a chunk and give it to the engine."""
        chunk = self.chunk(peer, local, remote, **fields)
        self.engine.put(SubmitChunk(chunk))
        return chunk

    def has_landed(self, chunk: TransferKVChunk) -> bool:
        """Whether it was reported."""
        return id(chunk) in self.sink.landed_chunks

    def failure(self, chunk: TransferKVChunk) -> tuple[str, bool] | None:
        """(message, quiescent) as reported."""
        return self.sink.failures.get(id(chunk))

    def rest(self) -> None:
        """Wait until nothing is counted any more."""
        until(lambda: not any(self.counts().values()), "rest")

    def counts(self) -> dict[str, int]:
        """The counts that are 0 at rest."""
        skipped = {"peers", "totals", "queued_by_shard"}
        return {name: int(value) for name, value in self.engine.snapshot().items() if name not in skipped}  # type: ignore[call-overload]

    def check(self) -> None:
        """No breach of any contract has been seen."""
        assert self.transport.breaches == []
        assert self.sink.breaches == []


def same(source: Memory, target: Memory, pool: str, local: Sequence[int], remote: Sequence[int]) -> bool:
    """Whether these items are equal on every buffer."""
    pairs = zip(source.arrays[pool], target.arrays[pool], strict=True)
    return all(bool((a[list(local)] == b[list(remote)]).all()) for a, b in pairs)


@contextmanager
def bench(
    transport: DoubleTransport | None = None, *, config: TransferConfig | None = None,
    capabilities: frozenset[Capability] = ALL, clock: Callable[[], float] = monotonic, source: Memory | None = None,
    start: bool = True, checked: bool = True,
) -> Iterator[Bench]:  # fmt: skip
    """A started engine; closed at the end, and then nothing may be left of it."""
    config = config or settings()
    made = Bench(transport or DoubleTransport(config), config, capabilities, clock, source or Memory(seed=7))
    if start:
        made.engine.start()
    try:
        yield made
    finally:
        made.engine.close(2.0)
    if checked:
        made.check()


def quiescent_error() -> TransportError:
    """An error after which nothing moves."""
    return TransportError("the fabric refused it", quiescent=True)
