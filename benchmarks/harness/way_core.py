"""kv-core: an engine's loop around senders or receivers, as a scheduler has it. Every call on its thread is timed."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from time import monotonic, perf_counter_ns
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.harness.figures import percentiles_us
from benchmarks.harness.held import HeldRooms
from benchmarks.harness.memory import Memory, page_sets
from benchmarks.harness.observing import HISTORY, Observation
from benchmarks.harness.work import Work
from kv_core import BootstrapServer, KVPoll, Role, TransferConfig, load_backend
from kv_core.contract.interfaces import BaseKVHandle, BaseKVManager, BaseKVReceiver, BaseKVSender

T = TypeVar("T")
BUSY_STEPS = 4_000
"""Python additions in one unit of a busy engine thread's work: some 0.2 ms."""


class CoreWay:
    """Both sides; ``source`` says which. ``options``: fields of ``TransferConfig``, and ``observe``: one of ``MODES``."""

    def __init__(self, memory: Memory, backend: str, *, source: bool) -> None:
        self._memory = memory
        self._backend = load_backend(backend)
        self._source = source
        self._bootstrap: BootstrapServer | None = None
        self._addr = ""
        self._manager: BaseKVManager | None = None
        self._held: HeldRooms | None = None
        self._observation: Observation | None = None

    @property
    def manager(self) -> BaseKVManager:
        """The open manager."""
        assert self._manager is not None, "open() comes first"
        return self._manager

    def open(self, options: dict[str, Any]) -> dict[str, Any]:
        """Create the manager; on the prefill side the bootstrap server as well."""
        if self._source:
            self._bootstrap = BootstrapServer("127.0.0.1", 0)
            self._addr = self._bootstrap.address
            options = {"bootstrap_addr": self._addr, **options}
        role = Role.PREFILL if self._source else Role.DECODE
        fields = dict(options)
        seen = self._observation = Observation(fields.pop("observe", HISTORY), self._backend.info, role)
        config = TransferConfig(**seen.config, **fields)
        self._manager = self._backend.create_manager(role, self._memory.args(), config, observers=seen.observers)
        return {"bootstrap": self._addr}

    def connect(self, told: dict[str, Any]) -> None:
        """Take the bootstrap server's address."""
        self._addr = self._addr or told["bootstrap"]

    def run(self, work: Work) -> dict[str, Any]:
        """Run the closed loop. Adds ``calls`` (microseconds by call), their sum ``held_s``, the thread's processor time ``engine_cpu_s``, and
        what the control channel counted.
        """
        before = self.manager.snapshot()["control"]
        named = {} if self._observation is None else self._observation.named
        loop = (SenderLoop if self._source else ReceiverLoop)(self.manager, self._addr, self._memory, work, named)
        result = loop.run()
        after = self.manager.snapshot()["control"]
        return result | {key: after[key] - before[key] for key in ("frames_in", "frames_out")}

    @property
    def held(self) -> HeldRooms:
        """Rooms that are opened and ended by command while others go on."""
        if self._held is None:
            self._held = HeldRooms(self.manager, self._addr, source=self._source)
        return self._held

    def close(self) -> None:
        """Close the manager and the server."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None
        if self._observation is not None:
            self._observation.close()
        if self._bootstrap is not None:
            self._bootstrap.close()
            self._bootstrap = None


class Job:
    """One room."""

    __slots__ = ("handle", "number", "sent", "slot")

    def __init__(self, number: int, slot: int, handle: Any) -> None:
        self.number = number
        self.slot = slot
        self.handle = handle
        self.sent = False


class Loop:
    """The engine's loop: one pass over all rooms, again and again."""

    seed = 0

    def __init__(
        self, manager: BaseKVManager, addr: str, memory: Memory, work: Work, named: dict[str, Any] | None = None
    ) -> None:
        self.create: dict[str, Any] = named or {}
        self.manager = manager
        self.addr = addr
        self.work = work
        self.sets: list[npt.NDArray[np.int64]] = page_sets(
            memory.shape.pages, work.pages, work.concurrency, work.pattern, self.seed
        )
        self.times: dict[str, list[int]] = defaultdict(list)
        self.stamps: dict[int, float] = {}
        self.fullest: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Until every room has ended well."""
        work = self.work
        free = list(range(work.concurrency))
        live: list[Job] = []
        opened = 0
        start, used = monotonic(), time.thread_time()
        while opened < work.rooms or live:
            while opened < work.rooms and free:
                live.append(self.begin(work.first_room + opened, free.pop()))
                opened += 1
                if opened == work.rooms:
                    self.fullest = self._look()
            still = [job for job in live if not self._step(job, free)]
            if len(still) == len(live):
                self._between()
            live = still
        end = monotonic()
        return {
            "start": start, "end": end, "calls": {name: percentiles_us(taken) for name, taken in self.times.items()},
            "held_s": sum(map(sum, self.times.values())) / 1e9, "engine_cpu_s": time.thread_time() - used,
            "fullest": self.fullest, "stamps": self.stamps if work.stamps else {},
        }  # fmt: skip

    def _step(self, job: Job, free: list[int]) -> bool:
        """True if the room has ended."""
        handle: BaseKVHandle = job.handle
        state = self.timed("poll", handle.poll)
        if state is KVPoll.WaitingForInput and not job.sent:
            self.ready(job)
        if not state.terminal:
            return False
        if state is KVPoll.Failed or not handle.is_release_safe():
            raise RuntimeError(f"room {job.number}: {handle.failure() or 'its pages are not safe'}")
        self.ended(job)
        self.timed("clear", handle.clear)
        free.append(job.slot)
        return True

    def _between(self) -> None:
        if not self.work.busy:
            time.sleep(self.work.idle_s)
            return
        total = 0
        for step in range(BUSY_STEPS):
            total += step

    def _look(self) -> dict[str, Any]:
        counts = self.manager.snapshot()
        return {
            "live_rooms": counts["live_rooms"],
            "outstanding_transfers": counts["transfers"]["outstanding_transfers"],
        }

    def timed(self, name: str, call: Callable[..., T], *args: Any, **more: Any) -> T:
        """Make a call and note how long it took."""
        start = perf_counter_ns()
        result = call(*args, **more)
        self.times[name].append(perf_counter_ns() - start)
        return result

    def begin(self, number: int, slot: int) -> Job:
        """Open a room."""
        raise NotImplementedError

    def ready(self, job: Job) -> None:
        """The room waits for input."""

    def ended(self, job: Job) -> None:
        """The room has ended well."""


class SenderLoop(Loop):
    """The prefill side. A stamp is when the forward pass was done, and the (last) pages were handed over."""

    seed = 1

    def begin(self, number: int, slot: int) -> Job:
        """See ``Loop``."""
        sender: BaseKVSender = self.timed("create", self.manager.create_sender, self.addr, number, **self.create)
        job = Job(number, slot, sender)
        self.timed("init", sender.init, self.work.pages)
        if not self.work.patient:
            self.ready(job)
        return job

    def ready(self, job: Job) -> None:
        """See ``Loop``."""
        job.sent = True
        work, pages = self.work, self.sets[job.slot]
        for layer in range(work.layers):
            time.sleep(work.layer_s)
            if layer == work.layers - 1:
                self.stamps[job.number] = monotonic()
            if work.streamed:
                self.timed("send", job.handle.send, pages, layers=range(layer, layer + 1))
        if not work.streamed:
            self.stamps[job.number] = monotonic()
            self.timed("send", job.handle.send, pages)


class ReceiverLoop(Loop):
    """The decode side. A stamp is when Success was seen."""

    seed = 2

    def begin(self, number: int, slot: int) -> Job:
        """See ``Loop``."""
        receiver: BaseKVReceiver = self.timed("create", self.manager.create_receiver, self.addr, number, **self.create)
        job = Job(number, slot, receiver)
        self.timed("init", receiver.init)
        self.timed("send_metadata", receiver.send_metadata, self.sets[slot])
        job.sent = True
        return job

    def ended(self, job: Job) -> None:
        """See ``Loop``."""
        self.stamps[job.number] = monotonic()
