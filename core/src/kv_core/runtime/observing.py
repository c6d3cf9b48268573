"""The dispatcher thread: tells observers and logs failed rooms, so that a slow observer, or a slow log, holds up neither the
engine nor the control plane.
"""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from time import monotonic

from kv_core.contract.observers import Observers
from kv_core.contract.records import PeerEvent, RoomEvent
from kv_core.runtime.flight_log import FlightLog

MAX_WAITING = 100_000
"""Events that may wait for slow observers; further ones are dropped and counted."""


LOG_AFTER_S = 1.0
"""How long failures that were not logged wait for the next one that is."""


class ObserverThread:
    """Tells the observers in order, and ``log`` of failed rooms. With neither it starts no thread and keeps no event; without
    observers no event of a room that does well ever gets here.
    """

    def __init__(self, observers: Observers, name: str, log: FlightLog | None = None) -> None:
        self._observers = observers
        self._log = log
        self._queue: SimpleQueue[RoomEvent | PeerEvent | None] = SimpleQueue()
        self._kinds = observers.room_kinds  # a tuple: finding an enum's member by identity beats hashing it
        self._peers = bool(observers.peer)
        needed = bool(self._kinds) or self._peers or log is not None
        self._thread = threading.Thread(target=self._run, name=name) if needed else None
        self._progress_s = monotonic()
        self._log_errors = 0
        self.dropped = 0

    def start(self) -> None:
        """Start the thread, if there is anybody to tell."""
        if self._thread is not None:
            self._thread.start()

    def put(self, event: RoomEvent | PeerEvent) -> None:
        """Queue an event. Any thread, never blocks."""
        if isinstance(event, PeerEvent):
            if not self._peers:
                return
        elif event.kind not in self._kinds and (self._log is None or event.failure is None):
            return
        if self._queue.qsize() >= MAX_WAITING:
            self.dropped += 1
        else:
            self._queue.put(event)

    def _run(self) -> None:
        while (event := self._next()) is not None:
            self._progress_s = monotonic()
            if isinstance(event, PeerEvent):
                self._observers.tell_peer(event)
            else:
                self._observers.tell_room(event)
                self._write(event)
        self._write(None)

    def _next(self) -> RoomEvent | PeerEvent | None:
        while self._log is not None and self._log.pending:
            try:
                return self._queue.get(timeout=LOG_AFTER_S)
            except Empty:
                self._write(None)
        return self._queue.get()

    def _write(self, event: RoomEvent | None) -> None:
        """Log a failed room; without one, how many were not logged. An application's log handler may raise what it likes."""
        if self._log is None:
            return
        try:
            if event is None:
                self._log.flush()
            elif event.failure is not None:
                self._log.take(event)
        except Exception:  # noqa: BLE001 - to log that logging failed would fail, too
            self._log_errors += 1

    def close(self, deadline_s: float) -> bool:
        """Tell what is queued, then end; True if the thread has ended. Idempotent."""
        thread = self._thread
        if thread is None or thread.ident is None:
            return True
        self._queue.put(None)
        if thread is not threading.current_thread():
            thread.join(deadline_s)
        return not thread.is_alive()

    def health(self) -> dict[str, object]:
        """See ``BaseKVManager.health``; empty without observers."""
        if self._thread is None:
            return {}
        waiting = self._queue.qsize()
        age = monotonic() - self._progress_s if waiting else 0.0
        return {
            "alive": self._thread.is_alive(), "last_progress_age_s": age, "exceptions": self._observers.errors + self._log_errors,
            "waiting": waiting, "dropped": self.dropped,
        }  # fmt: skip
