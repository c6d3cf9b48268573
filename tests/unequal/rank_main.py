"""The program of a rank process: one rank of one case after the other. Commands as in ``tests.support.command_loop``."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
from dataclasses import asdict
from typing import Any

from kv_core import BaseKVManager, Role, TransferConfig, load_backend
from tests.support.command_loop import CommandLoop
from tests.unequal.engine import RankEngine, RoomOrder
from tests.unequal.memory import RankMemory
from tests.unequal.twists import TWISTS
from tests.unequal.wire import from_json


class UnequalRank(CommandLoop):
    """At most one manager at a time."""

    busy_wait_s = 0.002

    def __init__(self) -> None:
        super().__init__()
        self._manager: BaseKVManager | None = None
        self._engine: RankEngine | None = None

    @property
    def busy(self) -> bool:
        """Whether a room is live, or its pages are not yet safe."""
        return self._engine is not None and self._engine.busy

    def _step(self) -> None:
        if self._engine is not None and self._engine.busy:
            ended, released = self._engine.step()
            self.tell([{"ended": o.to_json()} for o in ended] + [{"released": o.to_json()} for o in released])

    # -- commands --------------------------------------------------------------------------------------------------

    def play(
        self, case: dict[str, Any], role: str, ranks: list[int], pools: list[str], twist: str, backend: str,
        config: dict[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        """Be this rank of a case: cut the memory, open the manager."""
        memory = RankMemory(from_json(case), Role(role), ranks, pools)
        args = TWISTS[twist](memory.args)
        self._manager = load_backend(backend).create_manager(Role(role), args, TransferConfig(**config))
        self._engine = RankEngine(self._manager, memory)
        return {"pid": os.getpid(), "endpoint": self._manager.endpoint}  # type: ignore[attr-defined]

    @property
    def engine(self) -> RankEngine:
        """The case's."""
        assert self._engine is not None, "play() comes first"
        return self._engine

    def open(self, order: dict[str, Any]) -> None:
        """Take a room up."""
        self.engine.open(RoomOrder(**order))

    def go(self, room: int) -> None:
        """Make the sends that were held."""
        for run in self._runs(room):
            run.go()

    def abort(self, room: int, reason: str) -> int:
        """Abort a room, if it is live; how many were."""
        runs = self._runs(room)
        for run in runs:
            run.handle.abort(reason)
        return len(runs)

    def state(self, room: int) -> str:
        """Of a room; empty once it has ended, or before it has begun."""
        return "".join(run.handle.poll().name for run in self._runs(room))

    def _runs(self, room: int) -> list[Any]:
        return [run for run in self.engine.runs if run.order.room == room]

    def fill(self, generation: int) -> None:
        """Other content in a source, poison in a destination."""
        assert not self.engine.busy, "nothing may be under way"
        self.engine.memory.fill(generation)

    def count(self, *, served: bool) -> dict[str, int]:
        """Compare all of the memory."""
        return asdict(self.engine.memory.count(served=served))

    def snapshot(self) -> dict[str, Any]:
        """The manager's."""
        return self.engine.manager.snapshot()

    def health(self) -> dict[str, Any]:
        """The manager's."""
        return self.engine.manager.health()

    def close(self) -> None:
        """End the case."""
        manager, self._manager, self._engine = self._manager, None, None
        if manager is not None:
            manager.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(process)d %(name)s %(message)s")
    faulthandler.register(signal.SIGUSR1)  # where does every thread stand?
    UnequalRank().serve()
