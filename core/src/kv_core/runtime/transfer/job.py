"""A claimed chunk on its way: a group of transfers with one conclusion."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from kv_core.contract.transport import PeerKey, Prepared, Transfer, TransferPlan
from kv_core.layout import Batch, Placement
from kv_core.protocol.chunks import ChunkResult, TransferKVChunk
from kv_core.protocol.messages import ChunkDigest
from kv_core.runtime.transfer.staging import Load, Staged


class PeerState:
    """What the owner knows of a peer: what was prepared, what waits for it, and how full its window is.

    ``prepared`` is None before ``AddPeer`` was performed, and for a peer that can't be used: ``problem`` says why.
    """

    __slots__ = (
        "fabric", "in_flight", "jobs", "key", "placement", "plan", "prepared", "problem", "process", "staged", "transfers",
        "waiting",
    )  # fmt: skip

    def __init__(self, key: PeerKey) -> None:
        self.key = key
        self.plan: TransferPlan | None = None
        self.placement: Placement | None = None
        self.prepared: Prepared | None = None
        self.staged: Staged | None = None
        self.problem = ""
        self.fabric = ""  # what is really in use, in the transport's words
        self.process: Mapping[str, object] = {}  # what it told of its process
        self.waiting: deque[TransferKVChunk] = deque()
        self.jobs: deque[ChunkJob] = deque()  # claimed, with batches still to post
        self.in_flight = 0  # bytes posted that may still be moving
        self.transfers = 0

    @property
    def usable(self) -> bool:
        """Whether chunks for it can be dealt with: posted, or failed for its problem."""
        return self.prepared is not None or bool(self.problem)


class Posting:
    """One batch that was given to the transport: ``transfer`` is None while ``submit`` has not returned."""

    __slots__ = ("cancelled", "failed", "job", "load", "nbytes", "retry_at", "started", "transfer", "windowed")

    def __init__(self, job: ChunkJob, nbytes: int) -> None:
        self.job = job
        self.nbytes = nbytes
        self.load: Load | None = None  # what it has of the staging area
        self.transfer: Transfer | None = None
        self.started = 0.0
        self.failed = False
        self.cancelled = False
        self.windowed = True  # counts against the peer's window
        self.retry_at: float | None = None  # progress() raised: asked alone, and not before this time


class ChunkJob:
    """A chunk that was claimed. ``outstanding`` postings are not known to be quiescent; ``lost`` ones never will be."""

    __slots__ = (
        "_batches", "aux_rows", "chunk", "digest", "engine_stopped", "engine_timed", "error", "lost", "nbytes",
        "outstanding", "peer", "postings", "reported", "started", "stopped", "upcoming",
    )  # fmt: skip

    def __init__(self, chunk: TransferKVChunk, peer: PeerState, batches: Iterator[Batch]) -> None:
        self.chunk = chunk
        self.peer = peer
        self._batches: Iterator[Batch] | None = batches
        self.upcoming: Batch | None = None
        self.postings: set[Posting] = set()
        self.outstanding = 0
        self.lost = 0
        self.nbytes = 0
        self.started: float | None = None
        self.stopped: float | None = None
        self.engine_timed = True
        self.engine_stopped: float | None = None
        self.digest: ChunkDigest | None = None
        self.aux_rows: tuple[bytes, ...] = ()
        self.error: str | None = None
        self.reported = False

    def advance(self) -> None:
        """Bring up the next batch, or None after the last. May raise what making batches raises."""
        self.upcoming = None if self._batches is None else next(self._batches, None)

    def stop(self) -> None:
        """Post nothing more."""
        self._batches = None
        self.upcoming = None

    @property
    def stopped_early(self) -> bool:
        """Whether nothing more may be posted. Read by submitting threads."""
        return self._batches is None

    @property
    def at_rest(self) -> bool:
        """Whether nothing is to be posted and nothing posted can still become quiescent."""
        return self.upcoming is None and self.outstanding == self.lost

    def completed(self, posting: Posting, now: float, wire_seconds: float | None) -> None:
        """Take up one posting's times, when all of its bytes have landed."""
        self.nbytes += posting.nbytes
        self.started = posting.started if self.started is None else min(self.started, posting.started)
        self.stopped = now
        if wire_seconds is None:
            self.engine_timed = False
        else:
            # Core notices the end late, so the engine's duration counts from the submission, never past the notice.
            stop = min(posting.started + max(wire_seconds, 0.0), now)
            self.engine_stopped = stop if self.engine_stopped is None else max(self.engine_stopped, stop)

    def result(self, now: float) -> ChunkResult:
        """The result of a chunk that has landed. A chunk without bytes has an empty span at ``now``."""
        nbytes = self.nbytes + sum(map(len, self.aux_rows))
        if self.started is None or self.stopped is None:
            return ChunkResult(nbytes, now, now, "core", self.digest, self.aux_rows)
        if self.engine_timed and self.engine_stopped is not None:
            return ChunkResult(nbytes, self.started, self.engine_stopped, "engine", self.digest, self.aux_rows)
        return ChunkResult(nbytes, self.started, self.stopped, "core", self.digest, self.aux_rows)
