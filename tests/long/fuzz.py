"""A hundred thousand random messages on each socket and route, while good rooms are served by the same ranks.

    python -m tests.long.fuzz [--messages 100000] [--only TEXT] [--seed S] [--json]

A prefill and a decode process and a bootstrap server get them: on the control socket and the data port of each rank, and
on each route. A stranger whom both ranks took for a peer lends his session and his knowledge of the data ports' secrets.
Afterwards every thread is alive (how many exceptions it survived is told), every good room has succeeded with the right
bytes, the stranger's session stands, no counter says that anything is left but the good session once he has gone, and
memory has grown by less than 64 MiB in each process.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from time import monotonic
from typing import Any

import psutil

from kv_core import BootstrapServer
from tests.support import command_line
from tests.support.long_flat import FLEETING
from tests.support.long_noise import ROUTES, SEVERAL_PARTS, control, data, route
from tests.support.long_stranger import LivingStranger
from tests.support.memory import Shape
from tests.support.orders import Order
from tests.support.pair import TOTALS, at_rest
from tests.support.rank import RankProcess
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until

SHAPE = Shape(pages=256, layers=2, page_bytes=1_024, aux_rows=32)
REGIONS = 2 * SHAPE.layers + 1
TEMPLATE = Order(0, "", pages=6, chunks=2, aux=True)
CONFIG: dict[str, Any] = {"lease_s": 5.0, "waiting_timeout_s": 30.0, "bootstrap_timeout_s": 30.0}
CONCURRENCY = 4
SENDERS = 2
RSS_LIMIT_BYTES = 64 << 20
ROOM_LIMIT_S = 60.0
MIB = 1 << 20


class Scene:
    """The ranks, the server, the stranger, and good traffic."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.stack = ExitStack()
        self.violations: list[str] = []
        self.good = 0
        try:
            self.server = self.stack.enter_context(BootstrapServer(port=0))
            self.ranks = {role: self.stack.enter_context(RankProcess(role)) for role in ("prefill", "decode")}
            self.ranks["prefill"].start(SHAPE, config=CONFIG | {"bootstrap_addr": self.server.address}, seed=seed)
            self.ranks["decode"].start(SHAPE, config=CONFIG, seed=seed)
            template = replace(TEMPLATE, addr=self.server.address)
            self.traffic = Traffic(self.ranks["prefill"], self.ranks["decode"], template, CONCURRENCY)
            self.strangers = [
                self.stack.enter_context(LivingStranger(SHAPE, self.ranks[role])) for role in ("prefill", "decode")
            ]
            self.serve(lambda: self.good >= 20)
            self.rss = self._rss()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End everything."""
        self.stack.close()

    def _rss(self) -> dict[str, int]:
        found = {role: int(rank.call("usage")["rss"]) for role, rank in self.ranks.items()}
        return found | {"server": int(psutil.Process().memory_info().rss)}

    def serve(self, done: Callable[[], bool]) -> None:
        """Good traffic, and signs of life of the strangers, until then."""
        seen = [monotonic()]

        def look() -> bool:
            if self.traffic.pump():
                seen[0] = monotonic()
            if monotonic() - seen[0] > ROOM_LIMIT_S:
                raise AssertionError(f"no good room has ended for {ROOM_LIMIT_S:g} s: {self._states()}")
            self.good += len(self.traffic.finished)
            self.violations += [f"good room: {text}" for text in self.traffic.unsuccessful()]
            self.traffic.finished.clear()
            for rank in self.ranks.values():
                rank.ended = {room: outcome for room, outcome in rank.ended.items() if room in self.traffic.live}
                rank.released.clear()
            for stranger in self.strangers:
                stranger.live()
            return done()

        wait_until(look, "the end of the messages", 3_600.0)

    def _states(self) -> list[Any]:
        return [rank.call("states") for rank in self.ranks.values()]

    def targets(self, messages: int) -> dict[str, tuple[Callable[..., dict[str, int]], tuple[Any, ...]]]:
        """What is sent where: name to function and arguments."""
        seed, port = self.seed, self.server.port
        found: dict[str, tuple[Callable[..., dict[str, int]], tuple[Any, ...]]] = {}
        for stranger in self.strangers:
            known = stranger.acquaintance()
            found[f"control socket, {known.role}"] = (control, (seed, messages, known))
            found[f"data port, {known.role}"] = (data, (seed, messages, known.descriptor, REGIONS))
        for method, path in ROUTES:
            found[f"{method} {path}"] = (route, (seed, messages, port, method, path))
        return found

    def judge(self, several_parts: Mapping[str, int]) -> dict[str, Any]:
        """After the last message. ``several_parts``: such messages sent to each rank, which counts what it drops."""
        for role, count in several_parts.items():
            self.serve(lambda r=role, n=count: self._dropped(r)["not_two_frames"] >= n)  # type: ignore[misc]
        sessions = {role: rank.call("snapshot") for role, rank in self.ranks.items()}
        for role, snapshot in sessions.items():
            if snapshot["peers"] < 2:
                self.violations.append(
                    f"{role} has ended the session with the stranger: it took nothing of him any more"
                )
        self.traffic.paused = True
        self.serve(lambda: not self.traffic.live)
        for stranger in self.strangers:
            stranger.leave()
        left: list[str] = []

        def rests() -> bool:
            left[:] = [f"{role}: {text}" for role, rank in self.ranks.items() for text in self._left(rank)]
            return not left

        try:
            wait_until(rests, "rest", 60.0)
        except AssertionError:
            self.violations += [f"left over: {text}" for text in left]
        rss, exceptions = self._rss(), self._exceptions()
        for name, before in self.rss.items():
            if rss[name] - before > RSS_LIMIT_BYTES:
                self.violations.append(f"{name}: memory grew from {before} to {rss[name]} bytes")
        return {
            "good rooms": self.good, "exceptions survived": exceptions,
            "taken for": {role: snapshot["dropped"] for role, snapshot in sessions.items()},
            "MiB before": {name: size / MIB for name, size in self.rss.items()},
            "MiB after": {name: size / MIB for name, size in rss.items()},
        }  # fmt: skip

    def _dropped(self, role: str) -> dict[str, int]:
        control: dict[str, int] = self.ranks[role].call("snapshot")["control"]["dropped"]
        return control

    def _left(self, rank: RankProcess) -> list[str]:
        snapshot = rank.call("snapshot")
        found = at_rest(snapshot, ignore=TOTALS | FLEETING)
        return found + ([f"peers={snapshot['peers']}"] if snapshot["peers"] > 1 else [])

    def _exceptions(self) -> dict[str, int]:
        found = {"server": int(self.server.snapshot()["exceptions"])}
        for role, rank in self.ranks.items():
            self.violations += [f"{role}: {text}" for text in rank.call("check_rest")]
            for name, health in rank.call("health").items():
                found[f"{role} {name}"] = health["exceptions"]
                if not health["alive"]:
                    self.violations.append(f"{role}: thread {name} is dead: {health}")
        if not self.server.health()["alive"]:
            self.violations.append(f"the bootstrap server is dead: {self.server.health()}")
        for name, count in found.items():
            # A peer that the transport can't take is one for the transfer thread, which says so and goes on.
            if count and not name.endswith("kv-transfer"):
                log = self.ranks[name.split()[0]].log() if name != "server" else ""
                self.violations.append(f"{name} survived {count} exceptions: {log}")
        return {name: count for name, count in found.items() if count}


def run(messages: int, seed: int, only: str = "") -> tuple[list[dict[str, Any]], list[str]]:
    """So many messages on each socket and route whose name contains the text; rows, violations."""
    scene = Scene(seed)
    rows: list[dict[str, Any]] = []
    began = monotonic()
    try:
        with ProcessPoolExecutor(SENDERS, get_context("spawn")) as pool:
            ends: dict[str, float] = {}
            futures: dict[str, Future[dict[str, int]]] = {}
            for name, (send, arguments) in scene.targets(messages).items():
                if only in name:
                    futures[name] = pool.submit(send, *arguments)
                    futures[name].add_done_callback(lambda _, n=name: ends.setdefault(n, monotonic()))  # type: ignore[misc]
            scene.serve(lambda: all(future.done() for future in futures.values()))
            for name, future in futures.items():
                error = future.exception()
                if error is not None:
                    scene.violations.append(f"{name}: {type(error).__name__}: {error}")
                rows.append(
                    {"where": name, "done after s": ends[name] - began, "sent": {} if error else future.result()}
                )
        sent = {row["where"].rpartition(" ")[2]: row["sent"] for row in rows if row["where"].startswith("control")}
        parts = {role: counts.get(SEVERAL_PARTS, 0) for role, counts in sent.items()}
        rows.append({"where": "(all)", "done after s": monotonic() - began} | scene.judge(parts))
    except AssertionError as error:
        scene.violations.append(str(error))
    finally:
        scene.close()
    return rows, scene.violations


def repeat(messages: int, seed: int, only: str = "") -> str:
    """The command that repeats a run."""
    chosen = ["--only", shlex.quote(only)] if only else []
    return command_line.repeat("tests.long.fuzz", seed, f"--messages {messages}", *chosen)


def main() -> int:
    """The command line."""
    parser = command_line.parser("Random messages on each socket and route")
    parser.add_argument("--messages", type=int, default=100_000, help="on each socket and route")
    parser.add_argument("--only", default="", help="only where the name contains this")
    given = parser.parse_args()
    seed = command_line.chosen_seed(given.seed)
    rows, violations = run(given.messages, seed, given.only)
    command = repeat(given.messages, seed, given.only)
    return command_line.report("fuzz", rows, violations[:50], command=command, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
