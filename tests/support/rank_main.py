"""The program of a rank process: commands as JSON lines on stdin, replies and events as JSON lines on stdout.

    {"id": 1, "do": "start", "role": "prefill", "shape": {...}, "args": {...}, "config": {...}}
    -> {"id": 1, "ok": {...}} or {"id": 1, "error": "..."}; and at any time {"ended": {...}} and {"released": {...}}

It ends when stdin does, so it never outlives the test that started it.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import select
import signal
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from kv_core import BaseKVManager, BootstrapServer, KVArgs, Role, TransferConfig, load_backend
from tests.support.engine import DecodeEngine, Engine, PrefillEngine
from tests.support.memory import RankMemory, Shape
from tests.support.orders import Order
from tests.support.usage import usage

BUSY_WAIT_S = 0.001
IDLE_WAIT_S = 1.0


class RankServer:
    """Serves one rank: at most one manager with its engine, and at most one bootstrap server."""

    busy_wait_s = BUSY_WAIT_S

    def __init__(self) -> None:
        self.manager: BaseKVManager | None = None
        self.engine: Engine | None = None
        self.bootstrap: BootstrapServer | None = None
        self._buffer = b""
        self._ended = False

    def serve(self) -> None:
        """Until stdin ends."""
        try:
            while not self._ended:
                busy = self.engine is not None and self.engine.busy
                ready, _, _ = select.select([0], [], [], self.busy_wait_s if busy else IDLE_WAIT_S)
                if ready:
                    self._read()
                self._step()
        finally:
            self.close()

    def _read(self) -> None:
        data = os.read(0, 1 << 20)
        if not data:
            self._ended = True
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._answer(json.loads(line))

    def _answer(self, request: dict[str, Any]) -> None:
        number = request.pop("id")
        do: Callable[..., Any] = getattr(self, request.pop("do"))
        try:
            reply: dict[str, Any] = {"id": number, "ok": do(**request)}
        except Exception as error:
            logging.getLogger(__name__).exception("a command failed")
            reply = {"id": number, "error": f"{type(error).__name__}: {error}"}
        _write([reply])

    def _step(self) -> None:
        if self.engine is not None and self.engine.busy:
            ended, released = self.engine.step()
            _write([{"ended": o.to_json()} for o in ended] + [{"released": o.to_json()} for o in released])

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

    def exit(self) -> None:
        """Close what is open, then end."""
        self.close()
        self._ended = True


def _write(messages: list[dict[str, Any]]) -> None:
    if messages:
        sys.stdout.write("".join(json.dumps(message, default=str) + "\n" for message in messages))
        sys.stdout.flush()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(process)d %(name)s %(message)s")
    faulthandler.register(signal.SIGUSR1)  # where does every thread stand?
    RankServer().serve()
