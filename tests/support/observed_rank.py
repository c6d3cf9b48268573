"""The program of a rank process that serves its metrics, and that can be broken in ways in which real ones break.

As ``rank_main``; ``start`` takes ``broken`` besides, and its reply has ``metrics``: ``host:port`` of /metrics.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry

from kv_core import (
    BaseKVManager,
    KVArgs,
    MetricsServer,
    PrometheusMetrics,
    Role,
    RoomEvent,
    TransferConfig,
    load_backend,
)
from kv_core.contract.observers import Observers
from kv_core.contract.records import BackendRecord
from kv_core.runtime import create_manager
from kv_core.runtime.manager import CommonKVManager
from tests.support.command_loop import BUSY_WAIT_S
from tests.support.rank_main import RankServer


class LyingManager(CommonKVManager):
    """A backend's own manager whose rooms took less than no time, says it."""

    @classmethod
    def create(
        cls, record: BackendRecord, role: Role, args: KVArgs, config: TransferConfig, observers: Observers
    ) -> CommonKVManager:
        """As every manager; observers are told nonsense."""

        def lie(tell: Callable[[RoomEvent], object]) -> Callable[[RoomEvent], object]:
            def told(event: RoomEvent) -> object:
                if event.metric is not None:
                    event = replace(event, metric=replace(event.metric, transfer_latency_s=-1.0))
                return tell(event)

            return told

        return super().create(record, role, args, config, Observers(tuple(map(lie, observers.room)), observers.peer))


class BlindManager(CommonKVManager):
    """A backend's own manager that can't say how it is once its book is lost."""

    book_is_lost = False

    def snapshot(self) -> dict[str, Any]:
        """Fails from then on."""
        if self.book_is_lost:
            raise RuntimeError("this manager's book is lost")
        return super().snapshot()


class Blocked:
    """An observer that never comes back from its first call, until its process ends."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def kv_room_event(self, event: RoomEvent) -> None:
        """Waits."""
        self.gate.wait()


OWN_MANAGERS = {"lying": LyingManager, "blind": BlindManager}


class ObservedRank(RankServer):
    """Serves one rank and its metrics."""

    def __init__(self) -> None:
        super().__init__()
        self._registry = CollectorRegistry()
        self._metrics = PrometheusMetrics(self._registry)
        self._served = MetricsServer(registry=self._registry)
        self._blocked = Blocked()
        self._broken = ""
        self._give_up_at = ""

    def start(
        self, role: str, shape: dict[str, Any], args: dict[str, Any], config: dict[str, Any], backend: str, seed: int,
        broken: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        """Open the manager. ``broken``: "lying" or "blind", a manager of the backend's own; "slow": an observer that blocks."""
        self._broken = broken
        told = super().start(role, shape, args, config, backend, seed)
        return told | {"metrics": f"{self._served.host}:{self._served.port}"}

    def create_manager(self, backend: str, role: Role, args: KVArgs, config: TransferConfig) -> BaseKVManager:
        """One that is observed."""
        loaded = load_backend(backend)
        observer = self._metrics.observer(loaded.info, role)
        if self._broken in OWN_MANAGERS:
            record = replace(loaded.record, manager=OWN_MANAGERS[self._broken])
            observers = Observers((observer.kv_room_event,), (observer.kv_peer_event,))
            manager = create_manager(record, role, args, config, observers)
        else:
            more = [self._blocked] if self._broken == "slow" else []
            manager = loaded.create_manager(role, args, config, observers=[observer, *more])
        observer.watch(manager.snapshot, manager.health)
        return manager

    def _step(self) -> None:
        if self._give_up_at and self.engine is not None:
            for run in self.engine.runs:
                room = run.handle._room
                if room.phase.value == self._give_up_at:
                    run.handle.abort(f"seen in phase {self._give_up_at}")
        super()._step()

    # -- commands --------------------------------------------------------------------------------------------------

    def give_up_at(self, phase: str) -> None:
        """From now on abort every room that is seen in this phase of its life cycle; empty: none."""
        self._give_up_at = phase
        self.busy_wait_s = 0.0 if phase else BUSY_WAIT_S  # some phases are over in less than a millisecond

    def refuse_rooms(self, count: int) -> int:
        """Open so many rooms that can't be: each is one event."""
        assert self.manager is not None
        for _ in range(count):
            self.manager.create_receiver("127.0.0.1:1", -1).clear()
        return count

    def lose_the_book(self) -> None:
        """From now on no snapshot can be had of a manager that is "blind"."""
        assert isinstance(self.manager, BlindManager), self.manager
        self.manager.book_is_lost = True

    def end_thread(self, name: str) -> str:
        """End a thread of the manager by an exception that nobody survives, as a native library's exit would; its name."""
        (thread,) = [one for one in threading.enumerate() if one.name.endswith(name)]
        assert thread.ident is not None, "it runs"
        ended = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        assert ended == 1, f"{ended} threads were hit"
        return thread.name

    def close(self) -> None:
        """Close what is open."""
        self._blocked.gate.set()
        super().close()
        self._served.close()
        self._metrics.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(process)d %(name)s %(message)s")
    faulthandler.register(signal.SIGUSR1)
    ObservedRank().serve()
