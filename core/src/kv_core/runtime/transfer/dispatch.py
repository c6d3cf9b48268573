"""Who is posted next, and what becomes of it. Owner thread only, except what says otherwise.

Each peer has its own line behind the queues and its own window of bytes in flight. A peer whose window is full leaves
the round until one of its transfers has moved on, so that a slow or frozen peer holds up nobody else's rooms. Behind
one peer, up to ``OPEN_JOBS`` chunks take turns batch by batch, so that a room of many pages does not hold up small ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping

from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import Capability
from kv_core.contract.failures import TransportError
from kv_core.contract.transport import PeerKey, Prepared, Transfer, TransferPlan
from kv_core.layout import Batch, Placement, page_batch
from kv_core.protocol.chunks import ChunkResult, TransferKVChunk
from kv_core.protocol.messages import ChunkDigest
from kv_core.runtime.transfer.aux import AuxDataCodec
from kv_core.runtime.transfer.digest import Hasher, chunk_pages, describe_chunk, without_aux
from kv_core.runtime.transfer.job import ChunkJob, PeerState, Posting
from kv_core.runtime.transfer.outstanding import Outstanding
from kv_core.runtime.transfer.poster import Poster
from kv_core.runtime.transfer.reports import Reports
from kv_core.runtime.transfer.shards import Shards
from kv_core.runtime.transfer.staging import Load, Staged
from kv_core.runtime.transfer.troubles import SURVIVED, Troubles, described

REMEMBERED = 4_096
"""Peers that were removed: so many are remembered, for chunks that come later than the removal."""
OPEN_JOBS = 8
"""Chunks to one peer whose batches take turns."""
BATCHES_IN_WINDOW = 4
"""A batch has at most this part of a window, so that the next one is posted before the last has landed."""
MAX_TRANSFERS = 128
"""Transfers in flight to one peer: bounds what ``progress`` has to look at where transfers are tiny."""
POSTS_PER_TURN = 64
POSTING_S = 0.005
"""After so many posts, or so long, the engine is driven before more is posted: a post may take as long as its copy."""


class Dispatcher:
    """Claims chunks, posts their batches, and reports each chunk's one conclusion."""

    def __init__(
        self, config: TransferConfig, capabilities: frozenset[Capability], clock: Callable[[], float], shards: Shards,
        reports: Reports, troubles: Troubles, hasher: Hasher, codec: AuxDataCodec, *,
        moves: bool = True, reads: bool = False,
    ) -> None:  # fmt: skip
        self._config = config
        self._can_cancel = Capability.CANCEL in capabilities
        self._moves = moves
        self._reads = reads
        self._moves_aux = Capability.AUX in capabilities
        self._clock = clock
        self._shards = shards
        self._reports = reports
        self._troubles = troubles
        self._hasher = hasher
        self._codec = codec
        self._max_batch_bytes = max(1, config.window_bytes // BATCHES_IN_WINDOW)
        self._poster: Poster
        self._outstanding: Outstanding
        self._runnable: dict[PeerState, None] = {}
        self._closing = ""
        self._gone: OrderedDict[PeerKey, None] = OrderedDict()  # removed lately
        self.peers: dict[PeerKey, PeerState] = {}
        self.active: set[ChunkJob] = set()
        self.lost = 0
        self.dropped = 0

    def connect(self, poster: Poster, outstanding: Outstanding) -> None:
        """Give it the two that answer to it. Once, before anything else."""
        self._poster = poster
        self._outstanding = outstanding

    # -- peers -----------------------------------------------------------------------------------------------------

    def peer_ready(
        self, key: PeerKey, plan: TransferPlan, placement: Placement, prepared: Prepared, fabric: str,
        process: Mapping[str, object], staged: Staged | None = None,
    ) -> None:  # fmt: skip
        """Chunks for this peer may be posted from now on. ``prepared``: of the plan, and of what is staged of it."""
        self._gone.pop(key, None)
        peer = self._peer(key)
        peer.plan, peer.placement, peer.prepared, peer.staged = plan, placement, prepared, staged
        peer.problem, peer.fabric, peer.process = "", fabric, process
        self._runnable[peer] = None

    def peer_unusable(self, key: PeerKey, problem: str) -> None:
        """Chunks for this peer fail from now on."""
        self._gone.pop(key, None)
        peer = self._peer(key)
        peer.prepared, peer.problem = None, problem
        self._runnable[peer] = None

    def remove_peer(self, key: PeerKey) -> bool:
        """Forget a peer: what waits for it is not posted any more. False if nobody had added it."""
        self._gone[key] = None
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
        peer = self.peers.pop(key, None)
        if peer is None:
            return False
        added = peer.usable
        peer.prepared, peer.problem = None, _removed(key)
        self._poster.remove(key)
        self._runnable.pop(peer, None)
        while peer.waiting:
            self._open(peer, peer.waiting.popleft())
        while peer.jobs:
            self._fail(peer.jobs.popleft(), peer.problem)
        return added

    def _peer(self, key: PeerKey) -> PeerState:
        peer = self.peers.get(key)
        if peer is None:
            peer = self.peers[key] = PeerState(key)
        return peer

    # -- posting ---------------------------------------------------------------------------------------------------

    def enqueue(self, chunk: TransferKVChunk) -> None:
        """Put a chunk behind its peer. The peer may not be known yet: the order of two threads' effects is theirs."""
        if chunk.peer in self._gone:
            self.refuse(chunk, _removed(chunk.peer))
            return
        peer = self._peer(chunk.peer)
        peer.waiting.append(chunk)
        self._runnable[peer] = None

    def drop(self, chunk: TransferKVChunk) -> None:
        """A chunk that was not claimed is not wanted any more."""
        self.dropped += 1
        self._shards.left(chunk)

    def refuse(self, chunk: TransferKVChunk, message: str) -> None:
        """A chunk can't be posted: claim it, so that its failure counts, and fail it."""
        self._shards.left(chunk)
        if self._reports.claim(chunk):
            self._reports.failed(chunk, message, quiescent=True)
        else:
            self.dropped += 1

    @property
    def runnable(self) -> bool:
        """Whether ``post`` has something to look at."""
        return bool(self._runnable)

    def post(self) -> None:
        """Post what may be posted, one batch for each peer in turn, until the turn's share is used up."""
        until = self._clock() + POSTING_S
        for _ in range(POSTS_PER_TURN):
            if not self._runnable:
                return
            peer = next(iter(self._runnable))
            del self._runnable[peer]
            if self._post_one(peer):
                self._runnable[peer] = None  # at the end of the round
            if self._clock() >= until:
                return

    def _post_one(self, peer: PeerState) -> bool:
        """False if this peer has nothing to post, or can't be posted to before one of its transfers has moved on."""
        if not peer.usable or not self._poster.free(peer):
            return False
        if peer.in_flight >= self._config.window_bytes or peer.transfers >= MAX_TRANSFERS:
            return False
        job = self._pick(peer)
        if job is None:
            return False
        batch = job.upcoming
        if job.chunk.room.ended or batch is None:
            self._abandon(job, "the room ended before all of the chunk was posted")
            return True
        if peer.in_flight and peer.in_flight + batch.nbytes > self._config.window_bytes:
            peer.jobs.appendleft(job)
            return False
        try:
            load, wait = self._load(peer, batch)
            if wait:
                peer.jobs.appendleft(job)
                return False
        except SURVIVED as error:
            self._troubles.add("a batch could not be gathered", error)
            self._fail(job, described(error))
            return True
        posting = Posting(job, batch.nbytes)
        posting.load = load
        try:
            job.advance()
        except SURVIVED as error:
            self._troubles.add("a batch could not be made", error)
            self._unload(posting)
            self._fail(job, described(error))
            return True
        if job.upcoming is not None:
            peer.jobs.append(job)  # at the end of the line
        job.postings.add(posting)
        job.outstanding += 1
        peer.in_flight += posting.nbytes
        peer.transfers += 1
        self._poster.post(posting, batch if load is None else load.batch)
        return True

    def _load(self, peer: PeerState, batch: Batch) -> tuple[Load | None, bool]:
        """What the batch has of the staging area, if it is staged; or whether it waits for that."""
        if peer.staged is None or not peer.staged.wants(batch):
            return None, False
        load, wait = peer.staged.load(batch)
        if load is not None and not self._reads:
            try:
                load.gather()
            except SURVIVED:
                peer.staged.unload(load)
                raise
        return load, wait

    def _unload(self, posting: Posting) -> None:
        load, posting.load, staged = posting.load, None, posting.job.peer.staged
        if load is not None and staged is not None:
            staged.unload(load)

    def _pick(self, peer: PeerState) -> ChunkJob | None:
        while peer.waiting and len(peer.jobs) < OPEN_JOBS:
            job = self._open(peer, peer.waiting.popleft())
            if job is not None:
                peer.jobs.append(job)
                break
        return peer.jobs.popleft() if peer.jobs else None

    def _open(self, peer: PeerState, chunk: TransferKVChunk) -> ChunkJob | None:
        """Claim a chunk and get it ready to post. None if it was dropped, has failed, or has nothing to move."""
        if chunk.room.ended:
            self.drop(chunk)
            return None
        if peer.problem or self._closing:
            self.refuse(chunk, peer.problem or self._closing)
            return None
        self._shards.left(chunk)
        if not self._reports.claim(chunk):
            self.dropped += 1
            return None
        try:
            batch, digest, aux_rows = self._prepare(chunk, peer)
            if not self._moves:
                self._offer(chunk, batch, digest, aux_rows)
                return None
            job = ChunkJob(chunk, peer, self._batches(peer, batch))
            job.digest, job.aux_rows = digest, aux_rows
            job.advance()
        except SURVIVED as error:
            self._troubles.add("a chunk could not be prepared", error)
            self._reports.failed(chunk, described(error), quiescent=True)
            return None
        self.active.add(job)
        self._conclude(job)
        return None if job.upcoming is None else job

    def _batches(self, peer: PeerState, batch: Batch) -> Iterator[Batch]:
        limits = self._config.max_batch_descriptors, self._max_batch_bytes
        return batch.split(*limits) if peer.staged is None else peer.staged.batches(batch, *limits)

    def _prepare(
        self, chunk: TransferKVChunk, peer: PeerState
    ) -> tuple[Batch, ChunkDigest | None, tuple[bytes, ...]]:  # fmt: skip
        """What a chunk moves; the digest of its source, if one is asked for; its auxiliary row, if that goes by message."""
        assert peer.plan is not None, "a peer that is prepared has a plan"
        assert peer.placement is not None, "and one of pages"
        pages = chunk_pages(chunk, peer.placement)
        by_message = chunk.aux is not None and not (self._moves_aux or chunk.pulled)
        batch = page_batch(peer.plan, without_aux(pages) if by_message else pages, chunk.layers)
        digest: ChunkDigest | None = None
        aux_rows: tuple[bytes, ...] = ()
        if by_message and chunk.aux is not None:
            aux_rows = self._codec.encode(chunk.aux[0])
        if chunk.digest:
            whole = page_batch(peer.plan, pages, chunk.layers) if by_message else batch
            digest = describe_chunk(chunk, peer.plan, self._hasher.digest(whole)) if whole.slices else None
        return batch, digest, aux_rows

    def _offer(
        self, chunk: TransferKVChunk, batch: Batch, digest: ChunkDigest | None, aux_rows: tuple[bytes, ...]
    ) -> None:  # fmt: skip
        """The peer moves the bytes: it may from now on. What moves none has landed."""
        if batch.slices:
            self._reports.readable(chunk, digest, aux_rows)
        else:
            now = self._clock()
            result = ChunkResult(sum(map(len, aux_rows)), now, now, "core", digest, aux_rows)
            self._reports.landed(chunk, result)

    # -- answers of the poster -------------------------------------------------------------------------------------

    def on_posted(self, posting: Posting) -> None:
        """The transport took it."""
        if not isinstance(posting.transfer, Transfer):
            self.on_refused(posting, TypeError(f"submit() returned {posting.transfer!r}, which is no Transfer"))
            return
        self._outstanding.add(posting)
        job = posting.job
        if job.error is not None and self._can_cancel:
            self._outstanding.cancel(posting)
        self.on_free(job.peer.key)

    def on_refused(self, posting: Posting, error: BaseException) -> None:
        """``submit`` raised. Unless the transport vouches for it, what it began may still go on, and nobody can say
        when it has ended: there is no transfer to ask about.
        """
        self._troubles.add("submit() failed", error)
        job = posting.job
        self._leave_window(posting)
        job.postings.discard(posting)
        if isinstance(error, TransportError) and error.quiescent:
            job.outstanding -= 1
            self._unload(posting)
        else:
            self._stick(posting)
            job.lost += 1
            self.lost += 1
        self._fail(job, described(error))

    def on_withheld(self, posting: Posting) -> None:
        """It was not submitted: its job had been stopped, or its room had ended."""
        job = posting.job
        self._leave_window(posting)
        self._unload(posting)
        job.postings.discard(posting)
        job.outstanding -= 1
        self._abandon(job, "the room ended before all of the chunk was posted")

    def on_overdue(self, posting: Posting, seconds: float) -> None:
        """``submit`` takes too long: the room does not wait for it, its pages have to."""
        self._stick(posting)
        self._fail(
            posting.job,
            f"TimeoutError: submit() has not returned for {seconds:.1f} s, longer than "
            f"transferring_timeout_s={self._config.transferring_timeout_s:g}",
        )

    def on_free(self, key: PeerKey) -> None:
        """The peer can be posted to again."""
        peer = self.peers.get(key)
        if peer is not None and (peer.waiting or peer.jobs):
            self._runnable[peer] = None

    # -- outcomes --------------------------------------------------------------------------------------------------

    def on_done(self, posting: Posting, wire_seconds: float | None) -> None:
        """All bytes of the posting landed."""
        job = posting.job
        if self._reads and posting.load is not None and job.error is None and not job.chunk.room.ended:
            try:
                posting.load.scatter()
            except SURVIVED as error:
                self._troubles.add("a batch could not be scattered", error)
                job.postings.discard(posting)
                self._fail(job, described(error))
        job.completed(posting, self._clock(), wire_seconds)
        self._settled(posting)

    def on_failed(self, posting: Posting, error: str) -> None:
        """The posting failed. It leaves the window: a peer that fails slowly shall not fill it up."""
        self._leave_window(posting)
        self._stick(posting)
        self._fail(posting.job, error)

    def on_quiescent(self, posting: Posting) -> None:
        """A failed posting became quiescent."""
        self._settled(posting)

    def _stick(self, posting: Posting) -> None:
        staged = posting.job.peer.staged
        if posting.load is not None and staged is not None:
            staged.stick(posting.load)

    def _settled(self, posting: Posting) -> None:
        self._leave_window(posting)
        self._unload(posting)
        posting.job.postings.discard(posting)
        posting.job.outstanding -= 1
        self._conclude(posting.job)

    def _leave_window(self, posting: Posting) -> None:
        if posting.windowed:
            posting.windowed = False
            peer = posting.job.peer
            peer.in_flight -= posting.nbytes
            peer.transfers -= 1
            self.on_free(peer.key)

    # -- conclusions -----------------------------------------------------------------------------------------------

    def _fail(self, job: ChunkJob, message: str) -> None:
        """Report a failure at once, the first one only; what is posted is waited for."""
        self._stop(job, message)
        if not job.reported and job.outstanding:
            job.reported = True
            self._reports.failed(job.chunk, job.error or message, quiescent=False)
        self._conclude(job)

    def _abandon(self, job: ChunkJob, message: str) -> None:
        """Nobody waits for this chunk: report it once, when it is quiescent."""
        self._stop(job, message)
        self._conclude(job)

    def _stop(self, job: ChunkJob, message: str) -> None:
        if job.error is None:
            job.error = message
        job.stop()
        if self._can_cancel:
            for posting in job.postings:
                if not posting.failed:
                    self._outstanding.cancel(posting)

    def _conclude(self, job: ChunkJob) -> None:
        """If nothing of the job is under way any more, say how it ended."""
        if not job.at_rest or job not in self.active:
            return
        self.active.discard(job)
        if job.error is None:
            self._reports.landed(job.chunk, job.result(self._clock()))
        elif not job.reported:
            job.reported = True
            self._reports.failed(job.chunk, job.error, quiescent=not job.lost)
        elif not job.lost:
            self._reports.quiescent(job.chunk)

    # -- cleaning --------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Drop what waits for rooms that have ended, and peers that nobody ever announced."""
        for peer in list(self.peers.values()):
            if any(chunk.room.ended for chunk in peer.waiting):
                waiting = list(peer.waiting)
                peer.waiting.clear()
                for chunk in waiting:
                    if chunk.room.ended:
                        self.drop(chunk)
                    else:
                        peer.waiting.append(chunk)
            if not peer.usable and not peer.waiting:
                del self.peers[peer.key]
                self._runnable.pop(peer, None)
            elif peer.waiting or peer.jobs:
                self._runnable[peer] = None  # whatever went wrong before, it is looked at again
        self.sweep_jobs()

    def sweep_jobs(self) -> None:
        """Stop and cancel what was posted for rooms that have ended."""
        for job in list(self.active):
            if job.error is None and job.chunk.room.ended and (self._can_cancel or job.upcoming is not None):
                if job.upcoming is not None and job in job.peer.jobs:
                    job.peer.jobs.remove(job)
                self._abandon(job, "the room ended while the chunk was on its way")

    def close(self, reason: str) -> None:
        """Post nothing more, whatever comes."""
        self._closing = reason
        for peer in list(self.peers.values()):
            while peer.waiting:
                self._open(peer, peer.waiting.popleft())
            while peer.jobs:
                self._abandon(peer.jobs.popleft(), reason)
        for job in list(self.active):
            self._abandon(job, reason)

    def give_up(self) -> None:
        """At the end: report what is still not quiescent as failed, so that each claimed chunk is reported."""
        for job in self.active:
            if not job.reported:
                job.reported = True
                self._reports.failed(job.chunk, job.error or self._closing, quiescent=False)
        self.active.clear()


def _removed(key: PeerKey) -> str:
    return f"the peer {key.name} was removed"
