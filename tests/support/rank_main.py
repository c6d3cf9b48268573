"""The program of a rank process: commands as JSON lines on stdin, replies and events as JSON lines on stdout.

    {"id": 1, "do": "start", "role": "prefill", "shape": {...}, "args": {...}, "config": {...}}
    -> {"id": 1, "ok": {...}} or {"id": 1, "error": "..."}; and at any time {"ended": {...}} and {"released": {...}}

It ends when stdin does, so it never outlives the test that started it.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
from collections import deque
from typing import Any

from kv_core import BaseKVManager, BootstrapServer, KVArgs, Role, TransferConfig, load_backend
from tests.support.command_loop import CommandLoop
from tests.support.engine import DecodeEngine, Engine, PrefillEngine
from tests.support.memory import RankMemory, Shape
from tests.support.orders import Order
from tests.support.usage import usage


class RankServer(CommandLoop):
    """Serves one rank: at most one manager with its engine, and at most one bootstrap server."""

    def __init__(self) -> None:
        super().__init__()
        self.manager: BaseKVManager | None = None
        self.engine: Engine | None = None
        self.bootstrap: BootstrapServer | None = None

    @property
    def busy(self) -> bool:
        """Whether the engine has something to do."""
        return self.engine is not None and self.engine.busy

    def _step(self) -> None:
        if self.engine is not None and self.engine.busy:
            ended, released = self.engine.step()
            self.tell([{"ended": o.to_json()} for o in ended] + [{"released": o.to_json()} for o in released])

    # -- commands --------------------------------------------------------------------------------------------------

    def serve_bootstrap(self, port: int = 0) -> str:
        """Start a bootstrap server in this process; its address."""
        self.bootstrap = BootstrapServer(port=port)
        return self.bootstrap.address

    def start(
        self, role: str, shape: dict[str, Any], args: dict[str, Any], config: dict[str, Any], backend: str, seed: int
    ) -> dict[str, Any]:
        """Open the manager."""
        memory = RankMemory(Shape(**shape))
        side = Role(role)
        self.manager = self.create_manager(backend, side, memory.args(**args), TransferConfig(**config))
        engine = PrefillEngine if side is Role.PREFILL else DecodeEngine
        self.engine = engine(self.manager, memory, seed)
        return {"pid": os.getpid(), "endpoint": self.manager.endpoint, "instance_id": self.manager.instance_id}  # type: ignore[attr-defined]

    def create_manager(self, backend: str, role: Role, args: KVArgs, config: TransferConfig) -> BaseKVManager:
        """The manager that ``start`` opens."""
        return load_backend(backend).create_manager(role, args, config)

    def open(self, orders: list[dict[str, Any]]) -> int:
        """Take orders up; how many rooms are live now."""
        assert self.engine is not None
        for order in orders:
            self.engine.submit(Order(**order))
        return len(self.engine.runs)

    def abort(self, rooms: list[int]) -> int:
        """Abort these rooms, as far as they are live."""
        assert self.engine is not None
        wanted = set(rooms)
        runs = [run for run in self.engine.runs if run.order.room in wanted]
        for run in runs:
            run.handle.abort("nobody waits for it")
        self.engine.waiting = deque(order for order in self.engine.waiting if order.room not in wanted)
        return len(runs)

    def abort_all(self) -> int:
        """Abort every live room."""
        assert self.engine is not None
        for run in self.engine.runs:
            run.handle.abort("the test ends")
        return len(self.engine.runs)

    def live(self) -> list[int]:
        """Numbers of the rooms that have not ended."""
        assert self.engine is not None
        return [run.order.room for run in self.engine.runs] + [order.room for order in self.engine.waiting]

    def states(self) -> dict[str, str]:
        """State of each live room."""
        assert self.engine is not None
        return {str(run.order.room): run.handle.poll().name for run in self.engine.runs}

    def check_rest(self) -> list[str]:
        """Bytes found in pages at rest."""
        assert self.engine is not None
        return self.engine.check_rest()

    def snapshot(self) -> dict[str, Any]:
        """The manager's."""
        assert self.manager is not None
        return self.manager.snapshot()

    def health(self) -> dict[str, Any]:
        """The manager's."""
        assert self.manager is not None
        return self.manager.health()

    def usage(self) -> dict[str, int]:
        """Memory, threads and descriptors of this process."""
        return usage()

    def close(self) -> None:
        """Close what is open."""
        manager, self.manager, self.engine = self.manager, None, None
        server, self.bootstrap = self.bootstrap, None
        if manager is not None:
            manager.close()
        if server is not None:
            server.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(process)d %(name)s %(message)s")
    faulthandler.register(signal.SIGUSR1)  # where does every thread stand?
    RankServer().serve()
