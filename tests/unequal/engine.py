"""A rank's engine: drives the rooms of one rank on one manager. It knows its own pages and what it is told, no more."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

import numpy as np

from kv_core import BaseKVManager, KVPoll, Role
from tests.support.orders import Outcome
from tests.unequal.memory import RankMemory
from tests.unequal.sending import Send, sends


@dataclass(frozen=True)
class RoomOrder:
    """One room as each of its ranks gets it; they draw what else they need by ``seed``.

    dp_rank: prefill's, as decode names it. early: this rank does not wait for the other side before it names its pages.
    style: of ``sending``. hold: the last send, or the only one, waits for ``go``.
    """

    room: int
    addr: str
    seed: int = 0
    dp_rank: int = 0
    early: bool = False
    style: str = "whole"
    hold: bool = False

    def to_json(self) -> dict[str, Any]:
        """Fields by name."""
        return asdict(self)


class RankEngine:
    """Call ``step`` until nothing is busy; one thread."""

    def __init__(self, manager: BaseKVManager, memory: RankMemory) -> None:
        self.manager = manager
        self.memory = memory
        self.runs: list[Run] = []
        self.draining: list[Run] = []

    @property
    def busy(self) -> bool:
        """Whether a room is live, or its pages are not yet safe."""
        return bool(self.runs or self.draining)

    def open(self, order: RoomOrder) -> None:
        """Take a room up."""
        run = SenderRun(self, order) if self.memory.role is Role.PREFILL else ReceiverRun(self, order)
        self.runs.append(run)

    def step(self) -> tuple[list[Outcome], list[Outcome]]:
        """Look at every room once. Returns (those that ended, those whose pages became safe)."""
        ended = [run for run in self.runs if not run.step()]
        self.runs = [run for run in self.runs if run not in ended]
        self.draining += ended
        released = [run for run in self.draining if run.handle.is_release_safe()]
        self.draining = [run for run in self.draining if run not in released]
        for run in released:
            run.outcome.safe_s = monotonic()
        return [run.outcome for run in ended], [run.outcome for run in released]


class Run:
    """One room on this rank."""

    handle: Any

    def __init__(self, engine: RankEngine, order: RoomOrder) -> None:
        self.engine = engine
        self.memory = engine.memory
        self.order = order
        self.outcome = Outcome(order.room, engine.memory.role.value, monotonic())

    def step(self) -> bool:
        """Go on; False once the room has ended."""
        state: KVPoll = self.handle.poll()
        if not state.terminal:
            self.advance(state)
            return True
        outcome, metric, failure = self.outcome, self.handle.get_transfer_metric(), self.handle.failure()
        outcome.ended_s, outcome.state = monotonic(), state.name
        if failure is not None:
            outcome.stage, outcome.code, outcome.side = failure.stage.value, failure.code.value, failure.side.value
            outcome.message, outcome.retryable = failure.message, failure.retryable
        outcome.nbytes, outcome.latency_s, outcome.chunks = (
            metric.transfer_total_bytes, metric.transfer_latency_s, metric.chunks,
        )  # fmt: skip
        self.handle.clear()
        return False

    def advance(self, state: KVPoll) -> None:
        """Do what is due in this state."""
        raise NotImplementedError


class SenderRun(Run):
    """A room on a prefill rank: what decode has is asked of the sender, or known beforehand where it sends early."""

    def __init__(self, engine: RankEngine, order: RoomOrder) -> None:
        super().__init__(engine, order)
        self.held = order.hold
        self.left: deque[Send] | None = None
        self.handle = engine.manager.create_sender(order.addr, order.room)
        if order.early:
            case = self.memory.case
            self._begin(case.prefix * case.destination.page // case.source.page)

    def _begin(self, prefix: int) -> None:
        memory, order = self.memory, self.order
        pages = memory.pages_from(prefix)
        rng = np.random.default_rng([order.seed, *memory.place.ranks])
        self.left = deque(sends(order.style, rng, pages, memory.layers, memory.state_items()))
        self.handle.init(len(pages), memory.slot)
        self._send()

    def advance(self, state: KVPoll) -> None:
        """Begin once decode has named its pages."""
        if self.left is None and state is KVPoll.WaitingForInput:
            self._begin(self.handle.decode_prefix_len)

    def go(self) -> None:
        """Make the sends that were held."""
        self.held = False
        if self.left is not None:
            self._send()

    def _send(self) -> None:
        assert self.left is not None, "begun"
        while len(self.left) > self.held:
            pages, layers, states = self.left.popleft()
            self.handle.send(pages, state_indices=states, layers=layers)


class ReceiverRun(Run):
    """A room on a decode rank."""

    def __init__(self, engine: RankEngine, order: RoomOrder) -> None:
        super().__init__(engine, order)
        self.named = False
        self.handle = engine.manager.create_receiver(order.addr, order.room)
        self.handle.init(order.dp_rank)
        if order.early:
            self._name()

    def advance(self, state: KVPoll) -> None:
        """Name pages once prefill is known."""
        if not self.named and state is KVPoll.WaitingForInput:
            self._name()

    def _name(self) -> None:
        memory = self.memory
        self.named = True
        self.handle.send_metadata(
            memory.held.pages, aux_index=memory.slot, state_indices=memory.state_items(),
            decode_prefix_len=memory.case.prefix,
        )  # fmt: skip

    def go(self) -> None:
        """Nothing is ever held here."""
