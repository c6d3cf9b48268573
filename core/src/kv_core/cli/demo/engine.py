"""What both ranks' engine loops have in common: rooms are polled, ended ones reported, their pages kept until they are safe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic, TypeVar

import numpy as np

from kv_core.cli.demo.lines import Ended, FromRank, Met, OpenRoom
from kv_core.cli.demo.pages import U64, Content, FreeList, Memory
from kv_core.contract.enums import KVPoll
from kv_core.contract.interfaces import BaseKVHandle
from kv_core.runtime.bootstrap.addresses import format_address

H = TypeVar("H", bound=BaseKVHandle)


@dataclass
class Job(Generic[H]):
    """One request on this rank. ``pages`` and ``row`` are taken when the room has met its peer."""

    room: int
    handle: H
    opened_at: float
    met: bool = False
    pages: U64 | None = None
    row: int = 0
    sent: int = 0


@dataclass
class Quarantine:
    """What became of pages whose room had ended before it was safe to use them again."""

    longest_s: float = 0.0
    held: list[tuple[BaseKVHandle, U64, int, float]] = field(default_factory=list)

    @property
    def pages(self) -> int:
        """Pages that are held now."""
        return sum(int(pages.size) for _, pages, _, _ in self.held)


class Engine(ABC, Generic[H]):
    """One rank's loop body. ``step`` never waits: it polls each room and does the next piece of work.

    ``tell`` takes each event at once: a pass with comparisons in it takes a while.
    """

    def __init__(
        self,
        tell: Callable[[FromRank], None],
        memory: Memory,
        content: Content,
        random: np.random.Generator,
        pages_per_request: int,
    ) -> None:
        self._tell = tell
        self.memory = memory
        self.content = content
        self.pages_per_request = pages_per_request
        self.quarantine = Quarantine()
        self._jobs: dict[int, Job[H]] = {}
        self._pages = FreeList(memory.shape.num_pages, random)
        self._rows = FreeList(memory.shape.num_rows, random)

    @abstractmethod
    def open_handle(self, bootstrap_addr: str, room: int) -> H:
        """Open the room."""

    @abstractmethod
    def advance(self, job: Job[H]) -> bool:
        """Do the next piece of work on a room that has met its peer and has not ended; False if there was none."""

    @abstractmethod
    def conclude(self, job: Job[H], now: float) -> Ended:
        """What to report of a room that succeeded."""

    @abstractmethod
    def clean(self, pages: U64, row: int) -> None:
        """Called when pages may be used again, before they are."""

    def open(self, command: OpenRoom) -> None:
        """Take a request from the router."""
        address = format_address(command.bootstrap_host, command.bootstrap_port)
        handle = self.open_handle(address, command.bootstrap_room)
        self._jobs[command.bootstrap_room] = Job(command.bootstrap_room, handle, monotonic())

    def abort_unmet(self) -> None:
        """The other rank's process has ended: rooms that had not met it can't know, so the engine ends them."""
        for job in self._jobs.values():
            if job.handle.poll() is KVPoll.Bootstrapping:
                job.handle.abort("the router knows that the other rank died before this room had met it")

    def step(self) -> bool:
        """One pass over all rooms; False if nothing has changed."""
        busy = False
        for job in list(self._jobs.values()):
            state = job.handle.poll()
            if state.terminal:
                self._end(job, state)
                busy = True
            elif state is not KVPoll.Bootstrapping:
                if not job.met:
                    job.met = True
                    self._tell(Met(job.room))
                busy |= self.advance(job)
        return self._release_what_is_safe() or busy

    def free_bytes_touched(self) -> int:
        """Bytes of free pages and rows that are no longer poison."""
        return self.memory.touched_bytes(self._pages.free, self._rows.free)

    def take_memory(self, job: Job[H]) -> U64 | None:
        """Give a room its pages, in random order, and its row; the pages, or None if too few are free now."""
        pages = self._pages.take(self.pages_per_request)
        if pages is None:
            return None
        row = self._rows.take(1)
        if row is None:
            self._pages.give_back(pages)
            return None
        job.pages, job.row = pages, int(row[0])
        return pages

    def _end(self, job: Job[H], state: KVPoll) -> None:
        now = monotonic()
        if state is KVPoll.Success:
            self._tell(self.conclude(job, now))
        else:
            failure = job.handle.failure()
            assert failure is not None, "a failed room has a failure"
            reason = f"{failure.stage.value}/{failure.code.value}"
            self._tell(Ended(job.room, reason=reason, message=failure.message))
        job.handle.clear()
        del self._jobs[job.room]
        if job.pages is not None:
            self.quarantine.held.append((job.handle, job.pages, job.row, now))

    def _release_what_is_safe(self) -> bool:
        held = self.quarantine.held
        if not held:
            return False
        waiting = []
        for handle, pages, row, since in held:
            if not handle.is_release_safe():
                waiting.append((handle, pages, row, since))
                continue
            self.quarantine.longest_s = max(self.quarantine.longest_s, monotonic() - since)
            self.clean(pages, row)
            self._pages.give_back(pages)
            self._rows.give_back(np.array([row], np.uint64))
        self.quarantine.held = waiting
        return len(waiting) < len(held)
