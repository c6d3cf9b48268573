"""The dispatcher thread: tells observers, so that a slow one holds up neither the engine nor the control plane."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from time import monotonic

from kv_core.contract.observers import Observers
from kv_core.contract.records import PeerEvent, RoomEvent

MAX_WAITING = 100_000
"""Events that may wait for slow observers; further ones are dropped and counted."""


class ObserverThread:
    """Tells the observers in order. Without observers it starts no thread and keeps no event."""

    def __init__(self, observers: Observers, name: str) -> None:
        self._observers = observers
        self._queue: SimpleQueue[RoomEvent | PeerEvent | None] = SimpleQueue()
        self._wanted = bool(observers.room), bool(observers.peer)
        self._thread = threading.Thread(target=self._run, name=name) if any(self._wanted) else None
        self._progress_s = monotonic()
        self.dropped = 0

    def start(self) -> None:
        """Start the thread, if anybody observes."""
        if self._thread is not None:
            self._thread.start()

    def put(self, event: RoomEvent | PeerEvent) -> None:
        """Queue an event. Any thread, never blocks."""
        if not self._wanted[isinstance(event, PeerEvent)]:
            return
        if self._queue.qsize() >= MAX_WAITING:
            self.dropped += 1
        else:
            self._queue.put(event)

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            self._progress_s = monotonic()
            if isinstance(event, PeerEvent):
                self._observers.tell_peer(event)
            else:
                self._observers.tell_room(event)

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
            "alive": self._thread.is_alive(), "last_progress_age_s": age, "exceptions": self._observers.errors,
            "waiting": waiting, "dropped": self.dropped,
        }  # fmt: skip
