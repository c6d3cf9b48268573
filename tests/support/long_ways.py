"""Every way in which a room can end, and a scene that sends rooms through one of them: both sides in this process."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tests.support.engine import DecodeEngine, Engine, PrefillEngine
from tests.support.long_flat import await_rest
from tests.support.memory import Shape
from tests.support.orders import Order, Outcome
from tests.support.pair import Pair
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

SHAPE = Shape(pages=4_096, layers=2, page_bytes=128, aux_rows=128)
TEMPLATE = Order(0, "", pages=2)
SHORT: dict[str, Any] = {
    "bootstrap_timeout_s": 1.5, "waiting_timeout_s": 1.0, "transferring_timeout_s": 1.0, "draining_timeout_s": 1.0,
    "lease_s": 1.5, "close_timeout_s": 2.0,
}  # fmt: skip
"""Deadlines for ways that have to wait for one."""
LONG: dict[str, Any] = {"bootstrap_timeout_s": 1.5, "waiting_timeout_s": 60.0, "transferring_timeout_s": 60.0}
"""For the others: a busy machine must not run into a deadline. (A failed room's number is remembered that long.)"""
HANG_S = 60.0
PAUSE_S = 0.0005
COLLECT_EVERY = 256
MORE = 20
"""Rooms. What they leave in reference cycles shall not make memory rise and fall by more than a leak would."""
OK = "success"
WARM_ROOM = 1 << 40


@dataclass(frozen=True)
class Way:
    """One way to end.

    prefill, decode: how that side acts (see ``Order.act``), None: it never opens the room. at: (side, phase): that side
    gives up as soon as it sees this phase of its life cycle. late: prefill opens the room only when decode's has ended.
    ends: how a room may end, by side: ``success`` or a failure code; the first one is what the way is for.
    """

    name: str
    ends: Mapping[str, tuple[str, ...]]
    prefill: str | None = ""
    decode: str | None = ""
    at: tuple[str, str] | None = None
    late: bool = False
    faults: tuple[Mapping[str, Any], ...] = ()
    config: Mapping[str, Any] = field(default_factory=lambda: LONG)
    decode_args: Mapping[str, Any] = field(default_factory=dict)
    order: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 64


def _ends(prefill: str, decode: str) -> dict[str, tuple[str, ...]]:
    return {"prefill": tuple(prefill.split()), "decode": tuple(decode.split())}


def _aborts() -> list[Way]:
    slow = ({"kind": "delay", "every": 1, "seconds": 0.25},)
    here = {
        "prefill": _ends("aborted_local", "aborted_remote"),
        "decode": _ends("aborted_remote", "aborted_local"),
    }  # fmt: skip
    raced = {
        "prefill": _ends("aborted_local success", "aborted_remote success"),
        "decode": _ends("aborted_remote success", "aborted_local success"),
    }  # fmt: skip
    digests = LONG | {"digest": "all"}
    return [
        Way("abort: prefill, open", here["prefill"], at=("prefill", "open")),
        Way("abort: prefill, ready", here["prefill"], prefill="idle:pages", at=("prefill", "ready")),
        Way("abort: prefill, moving", here["prefill"], at=("prefill", "moving"), faults=slow),
        Way("abort: prefill, confirming", raced["prefill"], at=("prefill", "confirming"), config=digests),
        # Who gives up before it knows the route can tell nobody: this one's number is unknown to prefill.
        Way("abort: decode, open", _ends("", "aborted_local"), None, "idle:init", at=("decode", "open")),
        Way("abort: decode, ready", here["decode"], decode="idle:pages", at=("decode", "ready")),
        Way("abort: decode, offered", here["decode"], at=("decode", "offered"), late=True),
        Way("abort: decode, moving", here["decode"], at=("decode", "moving"), faults=slow),
        Way("abort: decode, verifying", raced["decode"], at=("decode", "verifying"), config=digests),
        Way("clear: prefill, live", here["prefill"], prefill="clear:WaitingForInput"),
        Way("clear: decode, live", here["decode"], decode="clear:WaitingForInput"),
    ]  # fmt: skip


def _failures() -> list[Way]:
    late_write = ({"kind": "late_write", "every": 1, "seconds": 0.02},)
    corrupt, drop = ({"kind": "corrupt", "every": 1},), ({"kind": "drop", "every": 1},)
    crowd: dict[str, Any] = {"concurrency": 480, "config": SHORT}
    digests = LONG | {"digest": "all"}
    return [
        Way("transport error", _ends("transport_error", "transport_error"), faults=late_write),
        Way("wrong byte", _ends("integrity", "integrity"), faults=corrupt, config=digests),
        Way("timeout: nothing asked for", _ends("timeout", "timeout"), decode="idle:init", **crowd),
        Way("timeout: nothing sent", _ends("timeout", "timeout"), prefill="idle:pages", **crowd),
        Way("timeout: nothing arrives", _ends("timeout", "timeout"), faults=drop, **crowd),
        Way("never claimed: prefill", _ends("", "unknown_room timeout"), prefill=None, **crowd),
        Way("never claimed: decode", _ends("timeout", ""), decode=None, **crowd),
        Way("invalid: prefill's pages", _ends("invalid_request", "invalid_request"), prefill="bad:pages"),
        Way("invalid: prefill's count", _ends("invalid_request", "invalid_request"), prefill="bad:count"),
        Way("invalid: decode's pages", _ends("invalid_request aborted_remote", "invalid_request"), decode="bad:pages"),
        Way("invalid: decode's count", _ends("invalid_request", "invalid_request"), decode="bad:count"),
        Way("handshake refused", _ends("incompatible", "incompatible"), decode_args={"page_size": 32}),
    ]  # fmt: skip


WAYS = (
    Way("success", _ends(OK, OK), order={"pages": 4, "chunks": 2, "aux": True, "prefix": 1}),
    Way("success: digests", _ends(OK, OK), config=LONG | {"digest": "all"}),
    Way("success: sent early", _ends(OK, OK), order={"early": True}),
    Way("duplicate: prefill", _ends(OK, OK), prefill="twice:open"),
    Way("duplicate: decode", _ends(OK, OK), decode="twice:open"),
    *_aborts(),
    *_failures(),
)


class WayScene:
    """Both sides in this process; sends rooms through one way."""

    def __init__(self, way: Way, seed: int) -> None:
        self.way = way
        self.ended: dict[str, Counter[str]] = {"prefill": Counter(), "decode": Counter()}
        self.violations: list[str] = []
        self.pair = Pair(
            SHAPE, config=way.config, prefill={"options": {"faults": list(way.faults), "seed": seed}},
            decode_args=way.decode_args, seed=seed,
        )  # fmt: skip
        self.engines: dict[str, Engine] = {
            "prefill": PrefillEngine(self.pair.prefill, self.pair.source, seed),
            "decode": DecodeEngine(self.pair.decode, self.pair.target, seed),
        }
        self._live: dict[int, int] = {}  # room -> sides that have not given its pages back
        self._pause = threading.Event()
        self._number = 0
        if not way.decode_args:
            self._meet()

    def _meet(self) -> None:
        """A room that fails somehow, so that the session and its threads are there before anything is counted."""
        receiver, sender = self.pair.receiver(WARM_ROOM), self.pair.sender(WARM_ROOM, [0])
        receiver.send_metadata([0])
        sender.send([0])
        handles = (sender, receiver)
        wait_until(lambda: sender.poll().value >= 3 or sender.poll().terminal, "a session", HANG_S)
        for handle in handles:
            handle.clear()
        wait_until(lambda: all(handle.is_release_safe() for handle in handles), "release", HANG_S)
        self.pair.source.wipe([0])
        self.pair.target.wipe([0])

    def close(self) -> None:
        """Close both sides."""
        self.pair.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def drive(self, rooms: int) -> None:
        """So many rooms, from their opening until their pages are given back; more if none has ended as intended yet, for
        an abort may come too early or too late in all of them.
        """
        self._drive(rooms)
        for _ in range(MORE):
            if not self._unseen():
                return
            self._drive(rooms)

    def _unseen(self) -> list[str]:
        """Sides of which no room has ended as intended."""
        return [side for side in self.engines if (ends := self.way.ends[side]) and not self.ended[side][ends[0]]]

    def _drive(self, rooms: int) -> None:
        goal = self._number + rooms

        def step() -> bool:
            while self._number < goal and len(self._live) < self.way.concurrency:
                self._open()
                if self._number % COLLECT_EVERY == 0:
                    gc.collect()
            if not self._step() and self.way.at is None:
                self._pause.wait(PAUSE_S)
            return self._number == goal and not self._live

        seconds = HANG_S + rooms / 20
        wait_until_busy(step, lambda: f"{self.way.name}: {len(self._live)} rooms hang: {self._shown()}", seconds)

    def _open(self) -> None:
        self._number += 1
        way, sides = self.way, 0
        order = replace(TEMPLATE, room=self._number, addr=self.pair.addr, **way.order)
        for side, act in (("decode", way.decode), ("prefill", way.prefill)):
            if act is None:
                continue
            sides += 1
            if not (way.late and side == "prefill"):
                self.engines[side].submit(replace(order, act=act))
        self._live[self._number] = sides

    def _step(self) -> bool:
        moved = False
        for side, engine in self.engines.items():
            ended, released = engine.step()
            if self.way.at is not None and self.way.at[0] == side:
                self._give_up(engine, self.way.at[1])
            moved = moved or bool(ended or released)
            for outcome in ended:
                self._judge(side, outcome)
                if self.way.late and side == "decode":
                    order = replace(TEMPLATE, room=outcome.room, addr=self.pair.addr, act=self.way.prefill or "")
                    self.engines["prefill"].submit(order)
            for outcome in released:
                self._live[outcome.room] -= 1
                if not self._live[outcome.room]:
                    del self._live[outcome.room]
        return moved

    def _give_up(self, engine: Engine, phase: str) -> None:
        for run in engine.runs:
            if run.handle._room.phase.value == phase:
                run.handle.abort("as the test has it")

    def _judge(self, side: str, outcome: Outcome) -> None:
        end = OK if outcome.state == "Success" else outcome.code
        self.ended[side][end] += 1
        if end not in self.way.ends[side] or outcome.correct is False or (end != OK and not outcome.message):
            self.violations.append(str(outcome))
        twice = (self.way.prefill if side == "prefill" else self.way.decode) == "twice:open"
        if twice and "duplicate_room" not in outcome.message:
            self.violations.append(f"the second one was not refused: {outcome}")

    def _shown(self) -> str:
        return "; ".join(
            f"{side}: {[(r.order.room, r.handle.poll().name) for r in engine.runs][:8]} {engine.manager.snapshot()}"
            for side, engine in self.engines.items()
        )

    def rest(self) -> list[str]:
        """Wait until no counter of either side says that anything is alive."""
        return await_rest({side: engine.manager.snapshot for side, engine in self.engines.items()})

    def finish(self) -> list[str]:
        """What went wrong in all."""
        found = list(self.violations)
        for side, engine in self.engines.items():
            found += engine.check_rest()
            if side in self._unseen():
                found.append(f"{side}: no room ended with {self.way.ends[side][0]}: {dict(self.ended[side])}")
            found += [
                f"{side}: thread {name}: {health}"
                for name, health in engine.manager.health().items() if not health["alive"] or health["exceptions"]
            ]  # fmt: skip
        return found


def wait_until_busy(step: Any, what: Any, limit_s: float) -> None:
    """``wait_until`` for a condition that does the work itself and need not be waited for."""

    def many() -> bool:
        return any(step() for _ in range(64))

    wait_until(many, what, limit_s)
