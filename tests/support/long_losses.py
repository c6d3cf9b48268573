"""Rooms whose peer is lost: killed again and again in the middle of its rooms, each time with a successor."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kv_core import BootstrapServer, Role, TransferConfig, load_backend
from tests.support.engine import DecodeEngine, Engine, PrefillEngine
from tests.support.long_flat import await_rest
from tests.support.memory import RankMemory, Shape
from tests.support.orders import Order
from tests.support.rank import RankProcess
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

SHAPE = Shape(pages=1_024, layers=2, page_bytes=128, aux_rows=0)
BATCH = 240
"""Half of them are held back, and no more than 128 transfers are under way to one peer."""
REASONS = ("peer_lost", "peer_replaced", "transport_error")
HANG_S = 60.0
PAUSE_S = 0.001
BACKEND = "fake"


@dataclass(frozen=True)
class Loss:
    """Which side is killed."""

    name: str
    victim: str


LOSSES = (Loss("peer lost: prefill", "prefill"), Loss("peer lost: decode", "decode"))


class LossScene:
    """The survivor in this process, the victims in processes of their own."""

    def __init__(self, loss: Loss, seed: int) -> None:
        self.loss = loss
        self.side = "decode" if loss.victim == "prefill" else "prefill"
        self.seed = seed
        self.ended: dict[str, Counter[str]] = {self.side: Counter()}
        self.violations: list[str] = []
        self._number = 0
        self._pause = threading.Event()
        self._stack = ExitStack()
        try:
            self.addr = self._stack.enter_context(BootstrapServer(port=0)).address
            memory = RankMemory(SHAPE)
            backend, config = load_backend(BACKEND), TransferConfig(**self._config(self.side))
            self.manager = self._stack.enter_context(backend.create_manager(Role(self.side), memory.args(), config))
            kind = DecodeEngine if self.side == "decode" else PrefillEngine
            self.engine: Engine = kind(self.manager, memory, seed)
        except BaseException:
            self._stack.close()
            raise

    def _config(self, side: str) -> dict[str, Any]:
        if side == "decode":
            return {"bootstrap_timeout_s": 30.0}
        # One room in five never ends by itself: these are in the middle of their way when the peer is killed. (No more
        # than 128 transfers to one peer are under way, and each batch shall get as far as that.)
        faults = [{"kind": "hold", "every": 5, "seconds": 3_600.0}]
        return {
            "bootstrap_timeout_s": 30.0, "bootstrap_addr": self.addr, "options": {"faults": faults, "seed": self.seed}
        }  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def drive(self, rooms: int) -> None:
        """So many rooms, a peer for each few hundred of them."""
        for first in range(0, rooms, BATCH):
            self._lose_one(min(BATCH, rooms - first))

    def _lose_one(self, rooms: int) -> None:
        orders = [Order(self._number + i, self.addr, pages=1) for i in range(1, rooms + 1)]
        self._number += rooms
        with RankProcess(self.loss.victim) as victim:
            victim.start(SHAPE, config=self._config(self.loss.victim), seed=self.seed)
            waiting = list(orders)
            while waiting:  # as many as there are pages for, of which the held ones are not given back
                batch, waiting = waiting[:128], waiting[128:]
                victim.open(batch)
                for order in batch:
                    self.engine.submit(order)
                self._step_until(self._all_moving)
            victim.kill()
            self._step_until(lambda: not self.engine.busy)

    def _all_moving(self) -> bool:
        return not self.engine.waiting and all(run.handle.poll().name == "Transferring" for run in self.engine.runs)

    def _step_until(self, condition: Any) -> None:
        def step() -> bool:
            ended, _ = self.engine.step()
            for outcome in ended:
                end = "success" if outcome.state == "Success" else outcome.code
                self.ended[self.side][end] += 1
                if end not in (*REASONS, "success") or outcome.correct is False:
                    self.violations.append(str(outcome))
            return bool(condition())

        wait_until(step, lambda: f"{len(self.engine.runs)} rooms hang: {self.manager.snapshot()}", HANG_S)

    def rest(self) -> list[str]:
        """Wait until no counter of the survivor says that anything is alive."""
        return await_rest({self.side: self.manager.snapshot})

    def finish(self) -> list[str]:
        """What went wrong in all."""
        found = self.violations + self.engine.check_rest()
        if not any(self.ended[self.side][reason] for reason in REASONS):
            found.append(f"no room lost its peer: {self.ended}")
        return found
