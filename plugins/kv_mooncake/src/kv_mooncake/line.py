"""One peer's pieces in flight: posted by core's thread for that peer, awaited by a thread of its own, the oldest first.

So ``submit`` comes back when the last piece is posted, and the next batch is on its way before the last one has landed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from kv_mooncake.posting import IN_FLIGHT, Copies, Mover, Outcome, Piece

IDLE_S = 5.0
"""A thread that has nothing to wait for ends after this time; the next batch starts another."""
JOIN_S = 5.0
_LOOK_S = 0.25  # while there is no room: how often it is seen whether all has stopped


class _Job:
    """A batch: ``failure`` is its first; ``conclude`` is called once, when none of its pieces is awaited any more."""

    def __init__(self, conclude: Callable[[Outcome], None]) -> None:
        self.conclude = conclude
        self.failure: Outcome | None = None


class Line:
    """``move`` is for one thread at a time, ``close`` for another."""

    def __init__(self, mover: Mover, session: str) -> None:
        self._mover = mover
        self._session = session
        self._room = threading.Semaphore(IN_FLIGHT)
        self._flying: SimpleQueue[tuple[_Job, Piece | None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._moving = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether it has a thread, or may be about to start one."""
        return self._thread is not None or self._moving

    def move(self, copies: Copies, conclude: Callable[[Outcome], None]) -> Outcome | None:
        """Post all copies, waiting for room only. None: ``conclude`` hears, once and on any thread, how it went. Else it
        hears nothing: this is why nothing of it was posted.
        """
        if self._mover.spin:
            conclude(self._mover.move_spinning(self._session, copies))
            return None
        with self._lock:
            self._moving = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"kv-mooncake-{self._session}")
                self._thread.start()
        try:
            return self._post(copies, _Job(conclude))
        finally:
            self._moving = False

    def _post(self, copies: Copies, job: _Job) -> Outcome | None:
        for number, part in enumerate(copies.pieces()):
            while not self._room.acquire(timeout=_LOOK_S) and not self._mover.stopped:
                pass
            piece: Piece | Outcome
            if self._mover.stopped:
                piece = Outcome("the transport was closed before all of it was posted", posted=False)
            elif job.failure is None:
                piece = self._post_one(part)
            else:
                self._room.release()
                break
            if isinstance(piece, Outcome):
                self._room.release()
                if not number and not piece.posted:
                    return piece
                job.failure = job.failure or piece
                break
            self._flying.put((job, piece))
        self._flying.put((job, None))
        return None

    def _post_one(self, copies: Copies) -> Piece | Outcome:
        try:
            return self._mover.post(self._session, copies)
        except Exception as error:  # noqa: BLE001 - whatever it is, some of it may have been posted
            return Outcome(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """End the thread; the mover has been stopped. One that is inside of the engine ends when that comes out."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            self._flying.put(None)
            thread.join(JOIN_S)

    def _run(self) -> None:
        since = 0.0
        while (item := self._next()) is not None:
            job, piece = item
            if piece is None:
                job.conclude(job.failure or Outcome(None))
                continue
            try:
                outcome = self._mover.wait(piece, since)
            except Exception as error:  # noqa: BLE001 - the loop goes on, and the batch fails
                outcome = Outcome(f"{type(error).__name__}: {error}")
            job.failure = job.failure or outcome
            self._room.release()
            since = self._mover.clock()

    def _next(self) -> tuple[_Job, Piece | None] | None:
        while True:
            item = None
            with suppress(Empty):  # nothing came
                item = self._flying.get(timeout=_LOOK_S if self._mover.stopped else IDLE_S)
            if item is not None:
                return item
            with self._lock:
                if self._flying.empty() and not self._moving:
                    self._thread = None
                    return None
