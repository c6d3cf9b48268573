"""A small engine: drives any number of rooms on one manager through the public face, and distrusts it.

Pages are given out, written, compared and given back as an inference engine does it. Pages at rest are blank and are
looked at before they are used again, so a byte that lands in them after ``is_release_safe()`` is found.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any

import numpy as np

from kv_core import BaseKVManager, BaseKVReceiver, BaseKVSender, KVPoll
from tests.support.memory import RankMemory
from tests.support.orders import Order, Outcome


class PageBook:
    """Which pages (or rows) are free. First in, first out, so that a page rests as long as possible."""

    def __init__(self, count: int) -> None:
        self._free = deque(range(count))
        self.count = count

    def __len__(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """So many pages, or None if there are not enough."""
        if count > len(self._free):
            return None
        return [self._free.popleft() for _ in range(count)]

    def give_back(self, pages: list[int]) -> None:
        """These are free again."""
        self._free.extend(pages)

    def free(self) -> list[int]:
        """All free pages."""
        return list(self._free)


class Engine:
    """Base of the two sides. ``submit`` orders, then call ``step`` until they are through; one thread."""

    role = ""

    def __init__(self, manager: BaseKVManager, memory: RankMemory, seed: int) -> None:
        self.manager = manager
        self.memory = memory
        self.seed = seed
        self.pages = PageBook(memory.shape.pages)
        self.rows = PageBook(memory.shape.aux_rows)
        self.waiting: deque[Order] = deque()
        self.runs: list[Run] = []
        self.draining: list[Run] = []
        self.strays: list[str] = []
        """Each time a byte was found in pages at rest."""

    def submit(self, order: Order) -> None:
        """Take an order up as soon as there are pages for it."""
        self.waiting.append(order)

    @property
    def busy(self) -> bool:
        """Whether a room is live, or waits for pages, or its pages are not yet safe."""
        return bool(self.waiting or self.runs or self.draining)

    def step(self) -> tuple[list[Outcome], list[Outcome]]:
        """Look at every room once. Returns (those that ended, those whose pages became safe)."""
        while self.waiting and self._open(self.waiting[0]):
            self.waiting.popleft()
        ended, released = [], []
        live = []
        for run in self.runs:
            if run.step():
                live.append(run)
            else:
                ended.append(run.outcome)
                self.draining.append(run)
        self.runs = live
        if self.draining:
            still = []
            for run in self.draining:
                if run.release():
                    released.append(run.outcome)
                else:
                    still.append(run)
            self.draining = still
        return ended, released

    def has_room(self, order: Order) -> bool:
        """Whether there is a place for it now."""
        return order.pages - order.prefix <= len(self.pages) and int(order.aux) <= len(self.rows)

    def _open(self, order: Order) -> bool:
        raise NotImplementedError

    def check_rest(self) -> list[str]:
        """Strays found so far, and in all pages that are free now."""
        dirty = [page for page in self.pages.free() if not self.memory.blank([page])]
        if dirty:
            self.strays.append(f"{self.role}: free pages {dirty[:16]} were written into")
            self.memory.wipe(dirty)
        return list(self.strays)


class Place:
    """Pages, and a row if the order wants one. Whatever was written into them while they rested is found here."""

    def __init__(self, engine: Engine, order: Order) -> None:
        pages = engine.pages.take(order.pages - order.prefix)
        rows = engine.rows.take(int(order.aux))
        assert pages is not None, "looked before"
        assert rows is not None, "looked before"
        self.pages = pages
        self.row = rows[0] if rows else None
        if not engine.memory.blank(pages):
            engine.strays.append(
                f"{engine.role}: pages {pages} were written into while they rested (room {order.room})"
            )
            engine.memory.wipe(pages)


class Prompt(Place):
    """A place with the content of a room in it, so to speak computed."""

    def __init__(self, engine: Engine, order: Order) -> None:
        super().__init__(engine, order)
        engine.memory.write(engine.seed, order.room, self.pages, first=order.prefix)
        if self.row is not None:
            engine.memory.write_row(engine.seed, order.room, self.row)


class Run:
    """One room on one side."""

    def __init__(self, engine: Engine, order: Order, handle: BaseKVSender | BaseKVReceiver) -> None:
        self.engine = engine
        self.order = order
        self.handle: Any = handle
        self.outcome = Outcome(order.room, engine.role, monotonic())
        self.pages: list[int] = []
        self.row: int | None = None
        self.act, _, self.when = order.act.partition(":")

    def step(self) -> bool:
        """Go on; False once the room has ended."""
        state = self.handle.poll()
        if state.terminal:
            self._end(state)
            return False
        if self.act in ("abort", "clear") and state.name == self.when:
            self.give_up()
        else:
            self.advance(state)
        return True

    def give_up(self) -> None:
        """Abort or clear, as the order says."""
        self.act = ""
        if self.order.act.startswith("clear"):
            self.handle.clear()
        else:
            self.handle.abort("as the test has it")

    def advance(self, state: KVPoll) -> None:
        """Do what is due in this state."""
        raise NotImplementedError

    def _end(self, state: KVPoll) -> None:
        outcome, metric = self.outcome, self.handle.get_transfer_metric()
        outcome.ended_s = monotonic()
        outcome.state = state.name
        failure = self.handle.failure()
        if failure is not None:
            outcome.stage, outcome.code, outcome.side = failure.stage.value, failure.code.value, failure.side.value
            outcome.message, outcome.retryable = failure.message, failure.retryable
        outcome.nbytes, outcome.latency_s = metric.transfer_total_bytes, metric.transfer_latency_s
        outcome.chunks = metric.chunks
        if state is KVPoll.Success:
            self.compare()
        self.handle.clear()

    def compare(self) -> None:
        """After Success: is every byte there?"""

    def release(self) -> bool:
        """Give the pages back if that is safe."""
        if not self.handle.is_release_safe():
            return False
        engine = self.engine
        self.outcome.safe_s = monotonic()
        engine.memory.wipe(self.pages)
        engine.pages.give_back(self.pages)
        if self.row is not None and engine.memory.aux is not None:
            engine.memory.aux[self.row] = 0
            engine.rows.give_back([self.row])
        self.pages, self.row = [], None
        return True


class PrefillEngine(Engine):
    """Drives senders."""

    role = "prefill"

    def _open(self, order: Order) -> bool:
        if not self.has_room(order):
            return False
        prompt = Prompt(self, order)  # computed first: what is measured begins when the room is opened
        run = SenderRun(self, order, self.manager.create_sender(order.addr, order.room))
        self.runs.append(run)
        run.begin(prompt)
        return True


class SenderRun(Run):
    """A room on the prefill side."""

    def __init__(self, engine: Engine, order: Order, handle: BaseKVSender) -> None:
        super().__init__(engine, order, handle)
        self.sent = False

    def begin(self, prompt: Prompt) -> None:
        """Announce the prompt."""
        order, engine = self.order, self.engine
        if self.act == "twice":
            second = engine.manager.create_sender(order.addr, order.room)
            self.outcome.message = str(second.failure())
            second.clear()
        self.pages, self.row = prompt.pages, prompt.row
        if self.when == "open" and self.act in ("abort", "clear"):
            self.give_up()
        if self.order.act != "idle:init":
            self.handle.init(len(self.pages), self.row)
            if order.early:
                self._send()

    def advance(self, state: KVPoll) -> None:
        """Send once decode has asked."""
        if state is KVPoll.WaitingForInput and not self.sent:
            self._send()

    def _send(self) -> None:
        order = self.order
        self.sent = True
        if order.act in ("idle:pages", "idle:init"):
            return
        pages = np.asarray(self.pages, np.int64)
        if order.act == "bad:pages":
            self.handle.send(pages + self.engine.pages.count)
        elif order.act == "bad:count":
            self.handle.send(np.concatenate([pages, pages[:1]]))
        elif order.layerwise:
            layers = np.array_split(np.arange(self.engine.memory.shape.layers), order.chunks)
            for part in layers:
                self.handle.send(pages, layers=range(int(part[0]), int(part[-1]) + 1))
        else:
            for part in np.array_split(pages, order.chunks):
                self.handle.send(part)


class DecodeEngine(Engine):
    """Drives receivers."""

    role = "decode"

    def _open(self, order: Order) -> bool:
        run = ReceiverRun(self, order, self.manager.create_receiver(order.addr, order.room))
        self.runs.append(run)
        run.begin()
        return True


class ReceiverRun(Run):
    """A room on the decode side."""

    named = False

    def begin(self) -> None:
        """Start looking for prefill."""
        if self.act == "twice":
            second = self.engine.manager.create_receiver(self.order.addr, self.order.room)
            self.outcome.message = str(second.failure())
            second.clear()
        if self.when == "open" and self.act in ("abort", "clear"):
            self.give_up()
        if self.order.act != "idle:init":
            self.handle.init()

    def advance(self, state: KVPoll) -> None:
        """Name pages once prefill is known."""
        order = self.order
        if state is not KVPoll.WaitingForInput or self.named or order.act == "idle:pages":
            return
        if not self.engine.has_room(order):
            return
        self.named = True
        place = Place(self.engine, order)
        self.pages, self.row = place.pages, place.row
        pages = np.asarray(self.pages, np.int64)
        if order.act == "bad:pages":
            pages = pages + self.engine.pages.count
        elif order.act == "bad:count":
            pages = pages[:-1]
        self.handle.send_metadata(pages, aux_index=self.row, decode_prefix_len=order.prefix)

    def compare(self) -> None:
        """Every byte of every page and of the row."""
        engine, order = self.engine, self.order
        correct = engine.memory.holds(engine.seed, order.room, self.pages, first=order.prefix)
        if correct and self.row is not None:
            correct = engine.memory.holds_row(engine.seed, order.room, self.row)
        self.outcome.correct = correct
