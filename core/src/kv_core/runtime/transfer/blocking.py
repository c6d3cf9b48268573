"""How a batch gets to a transport whose ``submit`` may block: each peer has a thread of its own.

Threads start with the first batch for their peer, end when they have been idle for a while or their peer is removed,
and are bounded in number. A call that never returns holds up its own peer alone. It can't be ended from outside: its
thread is left to finish, and what it then brings is taken up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple

from kv_core.contract.failures import TransportError
from kv_core.contract.transport import PeerKey, Transfer, Transport
from kv_core.layout import Batch
from kv_core.runtime.transfer.job import PeerState, Posting
from kv_core.runtime.transfer.poster import Answers
from kv_core.runtime.transfer.troubles import SURVIVED

IDLE_S = 30.0
"""A thread without work ends after this time."""
JOIN_S = 5.0
DEPTH = 2
"""Batches given to a thread: one in ``submit``, one that follows without a turn of the owner in between."""


class Answer(NamedTuple):
    """What became of a posting: a transfer, an exception, or None if it was withheld."""

    submitter: Submitter
    posting: Posting
    outcome: Transfer | BaseException | None


class Submitter:
    """One peer's thread. The owner gives work and reads ``current``; the thread answers into a shared queue."""

    def __init__(
        self, key: PeerKey, transport: Transport, clock: Callable[[], float], answer: Callable[[Answer], None]
    ) -> None:
        self.key = key
        self.depth = 0  # owner only
        self.idle_since = clock()  # owner only
        self.current: Posting | None = None  # in submit() now
        self.exceptions = 0
        self.progress_at = clock()
        self._transport = transport
        self._clock = clock
        self._answer = answer
        self._work: SimpleQueue[tuple[Posting, Batch] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=f"kv-submit-{key.name[:12]}-{key.generation}")

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def give(self, posting: Posting, batch: Batch) -> None:
        """Work for the thread. Owner only."""
        self.depth += 1
        self._work.put((posting, batch))

    def end(self) -> None:
        """Let the thread end after what it has been given. Owner only."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            posting, batch = work
            outcome = self._submit(posting, batch)
            self.progress_at = self._clock()
            self._answer(Answer(self, posting, outcome))

    def _submit(self, posting: Posting, batch: Batch) -> Transfer | BaseException | None:
        job = posting.job
        prepared = job.peer.prepared
        if job.stopped_early or job.chunk.room.ended or prepared is None:
            return None
        posting.started = self._clock()
        self.current = posting
        try:
            return self._transport.submit(prepared, batch)
        except SURVIVED as error:
            self.exceptions += 1
            return error
        finally:
            self.current = None


class ThreadedPoster:
    """For ``ThreadingModel.BLOCKING``: calls ``submit`` on a thread for each peer."""

    def __init__(
        self, transport: Transport, clock: Callable[[], float], answers: Answers, wake: Callable[[], None],
        *, max_threads: int, limit_s: float, idle_s: float = IDLE_S,
    ) -> None:  # fmt: skip
        self._transport = transport
        self._clock = clock
        self._answers = answers
        self._wake = wake
        self._max_threads = max_threads
        self._limit_s = limit_s
        self._idle_s = idle_s
        self._submitters: dict[PeerKey, Submitter] = {}
        self._ending: list[Submitter] = []
        self._starved: set[PeerKey] = set()
        self._results: SimpleQueue[Answer] = SimpleQueue()
        self._overdue: set[Posting] = set()
        self._unanswered = 0

    def free(self, peer: PeerState) -> bool:
        """Whether the peer's thread, or a new one, has room for a batch."""
        submitter = self._submitters.get(peer.key)
        if submitter is not None:
            return submitter.depth < DEPTH
        if self._room():
            return True
        self._starved.add(peer.key)
        return False

    def post(self, posting: Posting, batch: Batch) -> None:
        """Hand over to the peer's thread."""
        key = posting.job.peer.key
        submitter = self._submitters.get(key)
        if submitter is None:
            submitter = Submitter(key, self._transport, self._clock, self._on_answer)
            try:
                submitter.start()
            except RuntimeError as error:  # the system has no more threads for this process
                text = f"no thread could be started to submit to peer {key.name}: {error}"
                self._answers.on_refused(posting, TransportError(text, quiescent=True))
                return
            self._submitters[key] = submitter
        self._unanswered += 1
        submitter.give(posting, batch)

    def turn(self) -> None:
        """Pass on answers, see who is overdue, and let idle threads end."""
        for _ in range(self._results.qsize()):
            try:
                self._take(self._results.get_nowait())
            except Empty:
                break
        now = self._clock()
        for submitter in self._ending:
            self._check_overdue(submitter, now)
        for submitter in list(self._submitters.values()):
            self._check_overdue(submitter, now)
            if not submitter.depth and now - submitter.idle_since > self._idle_s:
                self.remove(submitter.key)
        self._reap()
        if self._starved and self._room():
            starved, self._starved = self._starved, set()
            for key in starved:
                self._answers.on_free(key)

    def remove(self, peer: PeerKey) -> None:
        """Let the peer's thread end."""
        self._starved.discard(peer)
        submitter = self._submitters.pop(peer, None)
        if submitter is not None:
            submitter.end()
            self._ending.append(submitter)

    def pending(self) -> bool:
        """Whether answers are waiting for ``turn``."""
        return not self._results.empty()

    def busy(self) -> int:
        """Number of postings without an answer."""
        return self._unanswered

    def close(self, deadline: float) -> bool:
        """End every thread. One that is stuck in ``submit`` stays until that returns."""
        for key in list(self._submitters):
            self.remove(key)
        for submitter in self._ending:
            # One without work ends at once, whatever the deadline says.
            submitter.thread.join(max(0.0, deadline - self._clock()) if submitter.depth else JOIN_S)
        self._reap()
        return not self._ending

    def health(self) -> dict[str, dict[str, object]]:
        """By thread name."""
        now = self._clock()
        return {
            each.thread.name: {
                "alive": each.thread.is_alive(), "last_progress_age_s": max(0.0, now - each.progress_at),
                "exceptions": each.exceptions,
            }
            for each in [*self._submitters.values(), *self._ending]
        }  # fmt: skip

    def _on_answer(self, answer: Answer) -> None:
        self._results.put(answer)
        self._wake()

    def _take(self, answer: Answer) -> None:
        submitter, posting, outcome = answer
        submitter.depth -= 1
        submitter.idle_since = self._clock()
        self._unanswered -= 1
        self._overdue.discard(posting)
        if outcome is None:
            self._answers.on_withheld(posting)
        elif isinstance(outcome, BaseException):
            self._answers.on_refused(posting, outcome)
        else:
            posting.transfer = outcome
            self._answers.on_posted(posting)
        self._answers.on_free(submitter.key)

    def _check_overdue(self, submitter: Submitter, now: float) -> None:
        posting = submitter.current
        if posting is not None and posting not in self._overdue and now - posting.started > self._limit_s:
            self._overdue.add(posting)
            self._answers.on_overdue(posting, now - posting.started)

    def _room(self) -> bool:
        """Whether one more thread may be started; ends an idle one for it if need be."""
        if len(self._submitters) + len(self._ending) < self._max_threads:
            return True
        idle = [each for each in self._submitters.values() if not each.depth]
        if idle:
            self.remove(min(idle, key=lambda each: each.idle_since).key)
            self._reap()
        return len(self._submitters) + len(self._ending) < self._max_threads

    def _reap(self) -> None:
        if self._ending:
            for submitter in self._ending:
                if not submitter.thread.is_alive():
                    submitter.thread.join()
            self._ending = [each for each in self._ending if each.thread.is_alive()]
