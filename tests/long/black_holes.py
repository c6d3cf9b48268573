"""Fifty black-holed prefill servers, and the death of a fifty-first, which is noticed within its own deadline.

    python -m tests.long.black_holes [--holes 50] [--seed S] [--json]

A decode rank has rooms that wait for every black hole. A fifth of them each: the bootstrap server's connects hang; it
accepts and never answers; it is a real one, but the rank that it names is such a hang, or such a silence; or it was a
good one with a warm session until its process was stopped (SIGSTOP). Then a prefill process with rooms in the middle of
their transfers is killed, which must be noticed within 2 s; another one is stopped, which must be noticed within
(dead_after + 2) * probe_interval_s. All the time the engine's thread polls every room, and looks how long that takes.
"""

from __future__ import annotations

import random
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any

import numpy as np

from kv_core import BaseKVManager, BaseKVReceiver, KVPoll, Role, TransferConfig, load_backend
from kv_core.contract.failures import Failure
from tests.support import command_line
from tests.support.long_crowd import BACKEND, SHAPE
from tests.support.long_holes import Crowd, full_backlog, server_of, silent
from tests.support.memory import RankMemory, Shape
from tests.support.orders import Order
from tests.support.pair import at_rest
from tests.support.rank import RankProcess
from tests.support.waiting import wait_until

WAYS = ("connect hangs", "never answers", "rank: connect hangs", "rank: never answers", "frozen with a warm session")
VICTIM_SHAPE = Shape(pages=64, layers=1, page_bytes=64, aux_rows=0)
ROOMS = 8
"""In flight on each victim."""
KILLED_LIMIT_S = 2.0
POLL_LIMIT_S = 0.02
"""For 99 of 100 calls of ``poll()``, on a machine that is busy with other things."""
PATIENCE_S = 60.0
NEVER_S = 3_600.0


@dataclass
class Polls:
    """How long the engine's calls took, in seconds."""

    taken: list[float] = field(default_factory=list)

    def look(self, receivers: list[BaseKVReceiver]) -> None:
        """Poll every room once."""
        for receiver in receivers:
            began = perf_counter()
            receiver.poll()
            self.taken.append(perf_counter() - began)

    def row(self) -> dict[str, float]:
        """In microseconds."""
        p50, p99, top = np.percentile(self.taken, [50, 99, 100]) * 1e6
        return {"polls": len(self.taken), "p50 us": float(p50), "p99 us": float(p99), "max us": float(top)}


class Scene:
    """The decode rank, its black holes, and two prefill processes that will be lost."""

    def __init__(self, holes: int, seed: int, probe_interval_s: float) -> None:
        self.config = TransferConfig(probe_interval_s=probe_interval_s, bootstrap_timeout_s=NEVER_S)
        self.random = random.Random(seed)
        self.polls = Polls()
        self.rooms: dict[str, list[BaseKVReceiver]] = {way: [] for way in WAYS}
        self._numbers = iter(range(1, 1 << 62))
        self.stack = ExitStack()
        try:
            memory = RankMemory(VICTIM_SHAPE)
            self.memory = memory
            self.crowd: Crowd | None = None
            made = load_backend(BACKEND).create_manager(Role.DECODE, memory.args(), self.config)
            self.manager: BaseKVManager = self.stack.enter_context(made)
            args = memory.args()
            fields: dict[str, str | int] = {
                "page_size": args.page_size, "dtype": args.dtype, "kv_layout": args.kv_layout, "backend": BACKEND,
            }  # fmt: skip
            ways = [WAYS[number % len(WAYS)] for number in range(holes)]
            self.random.shuffle(ways)
            crowd = ways.count(WAYS[4])
            warm = self._warm(crowd) if crowd else []
            for way in ways:
                if way != WAYS[4]:
                    self.rooms[way].append(self._receiver(self._hole(way, fields)))
            self.rooms[WAYS[4]] = warm
            self.victims = [self._victim(name, seed) for name in ("killed", "frozen")]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End everything."""
        self.stack.close()

    @property
    def all_rooms(self) -> list[BaseKVReceiver]:
        """Those of the black holes."""
        return [receiver for receivers in self.rooms.values() for receiver in receivers]

    def _hole(self, way: str, fields: dict[str, str | int]) -> str:
        port = full_backlog(self.stack) if "hangs" in way else silent(self.stack)
        return server_of(self.stack, port, fields) if way.startswith("rank") else f"127.0.0.1:{port}"

    def _receiver(self, addr: str, number: int | None = None) -> BaseKVReceiver:
        receiver = self.manager.create_receiver(addr, next(self._numbers) if number is None else number)
        receiver.init()
        return receiver

    def _warm(self, members: int) -> list[BaseKVReceiver]:
        """Rooms that are bound to the members of a crowd, for which bytes could come at any time."""
        self.crowd = crowd = Crowd(members)
        self.stack.callback(crowd.close)
        assert SHAPE.layers == VICTIM_SHAPE.layers
        receivers = [self._receiver(addr) for addr in crowd.addrs]
        for page, receiver in enumerate(receivers):
            receiver.send_metadata([page % self.memory.shape.pages])
        crowd.open([receiver.room for receiver in receivers])
        self.await_state(receivers, KVPoll.Transferring)
        return receivers

    def _victim(self, name: str, seed: int) -> Victim:
        return Victim(self, name, seed)

    def await_state(self, receivers: list[BaseKVReceiver], state: KVPoll) -> None:
        """Until all of these rooms are in this state."""
        wait_until(
            lambda: all(receiver.poll() is state for receiver in receivers),
            lambda: f"{state.name}: {[(r.poll().name, str(r.failure())) for r in receivers]}",
            PATIENCE_S,
        )

    def await_end(self, receivers: list[BaseKVReceiver], began: float) -> float:
        """Poll every room of every black hole until these have ended; the seconds since ``began``."""
        others = self.all_rooms

        def ended() -> bool:
            self.polls.look(others + receivers)
            return all(receiver.poll().terminal for receiver in receivers)

        wait_until(ended, lambda: f"ends: {[r.poll().name for r in receivers]}", PATIENCE_S)
        return monotonic() - began


class Victim:
    """A prefill process with its bootstrap server, and rooms in the middle of their transfers."""

    def __init__(self, scene: Scene, name: str, seed: int) -> None:
        self.scene = scene
        self.rank = RankProcess("prefill", name=name)
        scene.stack.callback(self.rank.close)
        self.addr: str = self.rank.call("serve_bootstrap")
        faults = [{"kind": "hold", "every": 1, "seconds": NEVER_S}]
        config = {
            "bootstrap_addr": self.addr, "probe_interval_s": scene.config.probe_interval_s,
            "options": {"faults": faults, "seed": seed},
        }  # fmt: skip
        self.rank.start(VICTIM_SHAPE, config=config, seed=seed)
        self.receivers = [scene._receiver(self.addr) for _ in range(ROOMS)]
        self.rank.open(Order(receiver.room, self.addr, pages=2) for receiver in self.receivers)
        for number, receiver in enumerate(self.receivers):
            receiver.send_metadata([32 + 2 * number, 33 + 2 * number])
        scene.await_state(self.receivers, KVPoll.Transferring)

    def lose(self, how: str) -> tuple[float, list[Failure]]:
        """Kill or freeze it. Returns (seconds until every room has failed, the failures)."""
        began = monotonic()
        if how == "killed":
            self.rank.kill()
        else:
            self.rank.freeze()
        took = self.scene.await_end(self.receivers, began)
        return took, [failure for receiver in self.receivers if (failure := receiver.failure()) is not None]


def run(
    holes: int, seed: int, *, probe_interval_s: float = 1.0, slack_s: float = 0.0
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the report, and what was not as it should be. ``slack_s``: granted on top of the deadlines."""
    scene = Scene(holes, seed, probe_interval_s)
    try:
        return _judge(scene, slack_s)
    finally:
        scene.close()


def _judge(scene: Scene, slack_s: float) -> tuple[list[dict[str, Any]], list[str]]:
    config = scene.config
    frozen_limit_s = (config.dead_after + 2) * config.probe_interval_s
    rows: list[dict[str, Any]] = []
    violations: list[str] = []
    frozen_at = monotonic()
    if scene.crowd is not None:
        scene.crowd.freeze()
    for victim, limit_s in zip(scene.victims, (KILLED_LIMIT_S, frozen_limit_s), strict=True):
        how = victim.rank.name
        took, failures = victim.lose(how)
        codes = sorted({failure.code.value for failure in failures})
        rows.append(
            {"lost": how, "rooms": ROOMS, "noticed within s": took, "limit s": limit_s, "codes": ", ".join(codes)}
        )
        if took > limit_s + slack_s:
            violations.append(f"{how}: noticed only after {took:.2f} s, its deadline was {limit_s:g} s")
        if len(failures) != ROOMS or codes != ["peer_lost"]:
            violations.append(f"{how}: {len(failures)} of {ROOMS} rooms failed, with {codes}")
    warm = scene.rooms[WAYS[4]]
    if warm:
        took = scene.await_end(warm, frozen_at)
        rows.append({"lost": f"{len(warm)} {WAYS[4]}", "rooms": len(warm), "noticed within s": took})
    violations += [
        f"{way}: a room ended before its time: {receiver.failure()}"
        for way in WAYS[:4] for receiver in scene.rooms[way] if receiver.poll().terminal
    ]  # fmt: skip
    rows.append(
        {"lost": "(black holes)", "rooms": len(scene.all_rooms), "ways": {w: len(rs) for w, rs in scene.rooms.items()}}
    )
    polls = scene.polls.row()
    rows.append({"lost": "(engine thread)", "rooms": int(polls.pop("polls")), "poll()": polls})
    if polls["p99 us"] > POLL_LIMIT_S * 1e6:
        violations.append(f"poll() took {polls['p99 us']:.0f} us (99th percentile)")
    violations += [
        f"thread {name}: {health}"
        for name, health in scene.manager.health().items() if not health["alive"] or health["exceptions"]
    ]  # fmt: skip
    violations += _clear_up(scene)
    return rows, violations


def _clear_up(scene: Scene) -> list[str]:
    """Give every room up; with the processes gone, nothing may be left."""
    for receiver in scene.all_rooms + [r for victim in scene.victims for r in victim.receivers]:
        receiver.clear()
    for victim in scene.victims:
        victim.rank.kill()
    if scene.crowd is not None:
        scene.crowd.close()
    try:
        wait_until(lambda: not at_rest(scene.manager.snapshot()), limit_s=PATIENCE_S)
    except AssertionError:
        return [f"not at rest: {at_rest(scene.manager.snapshot())}"]
    began = monotonic()
    scene.manager.close()
    took = monotonic() - began
    return [] if took < scene.config.close_timeout_s + 5.0 else [f"close() took {took:.1f} s"]


def repeat(holes: int, seed: int) -> str:
    """The command that repeats a run."""
    return command_line.repeat("tests.long.black_holes", seed, f"--holes {holes}")


def main() -> int:
    """The command line."""
    parser = command_line.parser("Black-holed prefill servers, and the death of another one")
    parser.add_argument("--holes", type=int, default=50, help="black-holed prefill servers")
    parser.add_argument("--probe-interval", type=float, default=1.0, help="TransferConfig.probe_interval_s")
    given = parser.parse_args()
    seed = command_line.chosen_seed(given.seed)
    rows, violations = run(given.holes, seed, probe_interval_s=given.probe_interval)
    command = repeat(given.holes, seed)
    return command_line.report("black holes", rows, violations, command=command, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
