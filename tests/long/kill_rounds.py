"""Kill -9 of prefill, then of decode, in the middle of traffic, again and again, with a restart on the same port.

    python -m tests.long.kill_rounds [--rounds 20] [--seed S] [--load N] [--json]

Seen from the survivor: every affected room fails with its reason in time, none hangs, its pages are given back with
proof and no byte lands in them afterwards (they rest blank and are looked at before they are used again); it is never
restarted, and its first request to the restarted peer succeeds with at most one retry, within one heartbeat and the
time that a failure may take (2 s; 5 s under full load, which ``--load`` makes).
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kv_core import BootstrapServer
from tests.support import command_line
from tests.support.memory import Shape
from tests.support.orders import Order, Outcome
from tests.support.pair import at_rest
from tests.support.rank import RankProcess
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

SHAPE = Shape(pages=384, layers=4, page_bytes=8 * 1024, aux_rows=64)
TEMPLATE = Order(0, "", pages=12, prefix=2, chunks=3, aux=True)
CONCURRENCY = 16
HEARTBEAT_S = 1.0
"""The default of ``TransferConfig.probe_interval_s``."""
HANG_S = 30.0
REASONS = {"peer_lost", "peer_replaced", "transport_error"}
"""How a room may fail because its peer was killed: silence, a successor at the same address, or a torn connection."""
KINDS = ("prefill", "prefill with its bootstrap server", "decode")
RESTARTS = ("at once", "when the rooms have failed", "late")
OUTAGE_S = 5.0
"""How long a peer is away that is restarted late: longer than any retry may take to come round."""
BURN = "while True: pass"


@dataclass
class Tally:
    """What was seen in all rounds of one kind."""

    kind: str
    rounds: int = 0
    affected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    fail_s: list[float] = field(default_factory=list)
    release_s: list[float] = field(default_factory=list)
    attempts: Counter[int] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)
    carried: int = 0
    """Rooms that were open but not yet bound to the killed process, and were served by its successor."""
    good: int = 0
    violations: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """For the report."""
        return {
            "killed": self.kind, "rounds": self.rounds, "affected rooms": self.affected, "reasons": dict(self.reasons),
            "failed within s (max)": max(self.fail_s, default=0.0), "released within s (max)": max(self.release_s, default=0.0),
            "attempts after restart": dict(self.attempts), "first success s (max)": max(self.first_s, default=0.0),
            "carried over": self.carried, "good rooms": self.good, "violations": len(self.violations),
        }  # fmt: skip


class Scene:
    """A bootstrap server, a prefill and a decode process, traffic, and a stand-by process for the next restart."""

    def __init__(self, kind: str, seed: int, concurrency: int = CONCURRENCY) -> None:
        self.tally = Tally(kind)
        self.victim = kind.split(maxsplit=1)[0]
        self.survivor = "decode" if self.victim == "prefill" else "prefill"
        self.inside = kind == KINDS[1]
        self.seed = seed
        self._stack = ExitStack()
        self._random = random.Random(f"{seed} {kind}")
        self.ranks: dict[str, RankProcess] = {}
        try:
            self.standby = self._spawn(self.victim)
            if self.inside:
                self.addr = ""
            else:
                self.addr = self._stack.enter_context(BootstrapServer(port=0)).address
            for role in ("prefill", "decode"):
                self.ranks[role] = self._spawn(role)
                self._start(self.ranks[role])
        except BaseException:
            self.close()
            raise
        self.pid = self.ranks[self.survivor].pid
        template = replace(TEMPLATE, addr=self.addr)
        self.traffic = Traffic(self.ranks["prefill"], self.ranks["decode"], template, concurrency)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process."""
        self._stack.close()

    def _spawn(self, role: str) -> RankProcess:
        rank = RankProcess(role)
        self._stack.callback(rank.close)
        return rank

    def _start(self, rank: RankProcess, port: int = 0) -> None:
        if self.inside and rank.role == "prefill":
            bound = int(self.addr.rpartition(":")[2]) if self.addr else 0
            self.addr = rank.call("serve_bootstrap", port=bound)
        config: dict[str, Any] = {"control_port": port}
        if rank.role == "prefill":
            config["bootstrap_addr"] = self.addr
            # Some transfers take a while, so that there is always something in the middle of its way.
            config["options"] = {"faults": [{"kind": "delay", "probability": 0.3, "seconds": 0.15}], "seed": self.seed}
        rank.start(SHAPE, config=config, seed=self.seed)

    # -- one round -------------------------------------------------------------------------------------------------

    def round(self, fail_limit_s: float) -> None:
        """Traffic, kill, restart, first request, traffic."""
        restart = self._random.choice(RESTARTS)
        quick = restart == "at once"
        self._run_traffic(self._random.randrange(5, 40))
        survivor, old = self.ranks[self.survivor], self.ranks[self.victim]
        self.traffic.paused = True
        killed_s = monotonic()
        old.kill()
        standby, self.standby = self.standby, self._spawn(self.victim)
        open_rooms = [room for room in self.traffic.live if not self._ended_before(room, killed_s)]
        if quick:
            self._restart(standby, old, open_rooms)
            self._first_request(fail_limit_s)
        self._await_verdicts(open_rooms, served=quick)
        if not quick:
            if restart == "late":
                open_rooms.append(self._outage(killed_s))
            self._restart(standby, old, [room for room in open_rooms if room not in survivor.ended])
            self._first_request(fail_limit_s)
        self._judge(open_rooms, killed_s, fail_limit_s, standby)
        self._settle()
        self.tally.rounds += 1

    def _outage(self, killed_s: float) -> int:
        """A room that the survivor opens while its peer is away for long; the successor is to find, and to serve it."""
        order = self.traffic.order()
        self.traffic.live.add(order.room)
        self.ranks[self.survivor].open([order])
        wait_until(lambda: monotonic() > killed_s + OUTAGE_S, "the end of the outage")
        return order.room

    def _run_traffic(self, rooms: int) -> None:
        self.traffic.paused = False
        goal = len(self.traffic.finished) + rooms
        self._pump_until(lambda: len(self.traffic.finished) >= goal, "traffic")
        for text in self.traffic.unsuccessful():
            self.tally.violations.append(f"in quiet times: {text}")
        self.tally.good += len(self.traffic.finished)
        self.traffic.finished.clear()

    def _pump_until(self, condition: Any, what: str) -> None:
        def look() -> bool:
            self.traffic.pump()
            return bool(condition())

        wait_until(look, lambda: f"{what}; survivor's log: {self.ranks[self.survivor].log()}", HANG_S)

    def _ended_before(self, room: int, when: float) -> bool:
        outcome = self.ranks[self.survivor].ended.get(room)
        return outcome is not None and outcome.ended_s < when

    def _restart(self, standby: RankProcess, old: RankProcess, rooms: list[int]) -> None:
        """On the same port; the successor is told of the rooms that are open on the survivor."""
        self._start(standby, old.port)
        if standby.port != old.port:
            self.tally.violations.append(f"restarted on port {standby.port} instead of {old.port}")
        self.ranks[self.victim] = standby
        self.traffic.prefill, self.traffic.decode = self.ranks["prefill"], self.ranks["decode"]
        standby.open([replace(self.traffic.template, room=room) for room in rooms])

    def _await_verdicts(self, rooms: list[int], *, served: bool) -> None:
        """Until every room has ended on the survivor; without a successor, unbound ones may go on waiting for it."""
        survivor = self.ranks[self.survivor]

        def settled() -> bool:
            if all(room in survivor.ended for room in rooms):
                return True
            if served:
                return False
            states = survivor.call("states")
            return all(
                states.get(str(room), "Bootstrapping") == "Bootstrapping"
                for room in rooms
                if room not in survivor.ended
            )

        try:
            wait_until(settled, "verdicts", HANG_S)
        except AssertionError:
            hanging = {room: state for room, state in survivor.call("states").items() if int(room) in rooms}
            self.tally.violations.append(f"rooms hang on the survivor: {hanging}; {survivor.call('snapshot')}")
            survivor.call("abort_all")

    def _first_request(self, limit_s: float) -> None:
        """Until one succeeds; what counts is the time from its opening on both sides, retries included."""
        attempts, took, succeeded = 0, 0.0, False
        while not succeeded and attempts < 3:
            attempts += 1
            order = self.traffic.order()
            self.traffic.open([order])
            self._pump_until(
                lambda room=order.room: room in self.traffic.finished, "the first request after the restart"
            )
            outcomes = self.traffic.finished.pop(order.room)
            took += max(o.ended_s for o in outcomes) - max(o.opened_s for o in outcomes)
            succeeded = all(outcome.succeeded for outcome in outcomes)
        self.tally.attempts[attempts] += 1
        self.tally.first_s.append(took)
        if not succeeded or attempts > 2 or took > HEARTBEAT_S + limit_s:
            self.tally.violations.append(
                f"the first request took {attempts} attempts and {took:.2f} s after the restart"
            )

    def _judge(self, rooms: list[int], killed_s: float, limit_s: float, standby: RankProcess) -> None:
        survivor = self.ranks[self.survivor]
        self._pump_until(lambda: all(room in survivor.ended for room in rooms), "rooms that the successor serves")
        standby.call("abort", rooms=rooms)  # where they ended without it, nobody comes any more
        failed = [
            survivor.ended[room] for room in rooms if room in survivor.ended and survivor.ended[room].state == "Failed"
        ]
        tally = self.tally
        tally.affected += len(failed)
        for outcome in failed:
            after = outcome.ended_s - killed_s
            tally.reasons[outcome.code] += 1
            tally.fail_s.append(after)
            if after > limit_s and self._was_bound(outcome):
                tally.violations.append(f"failed only {after:.2f} s after the kill: {outcome}")
            if outcome.code not in REASONS or not outcome.message:
                tally.violations.append(f"not the reason: {outcome}")
        bad = [o for room in rooms if (o := survivor.ended[room]).state == "Success" and o.correct is False]
        tally.violations += [f"wrong bytes: {outcome}" for outcome in bad]
        self._judge_carried([room for room in rooms if room in standby.ended], limit_s, standby)
        tally.carried += sum(
            survivor.ended[room].state == "Success" and survivor.ended[room].ended_s > killed_s for room in rooms
        )
        wait_until(
            lambda: all(o.room in survivor.released for o in failed),
            lambda: f"pages: {survivor.call('snapshot')}",
            HANG_S,
        )
        tally.release_s += [survivor.released[o.room].safe_s - killed_s for o in failed]  # type: ignore[operator]

    def _judge_carried(self, rooms: list[int], limit_s: float, standby: RankProcess) -> None:
        """Rooms that had waited for the successor count from the moment at which it opened them."""
        for room in rooms:
            here, there = self.ranks[self.survivor].ended[room], standby.ended[room]
            if here.succeeded and there.succeeded:
                took = max(here.ended_s, there.ended_s) - max(here.opened_s, there.opened_s)
                self.tally.first_s.append(took)
                if took > HEARTBEAT_S + limit_s:
                    self.tally.violations.append(f"a room that had waited took {took:.2f} s after the restart")

    def _was_bound(self, outcome: Outcome) -> bool:
        return outcome.stage != "bootstrap"

    def _settle(self) -> None:
        """Nothing is left, nothing has landed where it must not, and the survivor is the one it was."""
        self.traffic.live.clear()
        self.traffic.finished.clear()
        for role, rank in self.ranks.items():
            await_rest(rank)
            self.tally.violations += [f"{role}: {text}" for text in rank.call("check_rest")]
            health = rank.call("health")
            self.tally.violations += [
                f"{role}: thread {name}: {h}" for name, h in health.items() if not h["alive"] or h["exceptions"]
            ]
        survivor = self.ranks[self.survivor]
        if survivor.pid != self.pid or not survivor.alive:
            self.tally.violations.append("the survivor did not survive")
        survivor.ended.clear()
        survivor.released.clear()


def await_rest(rank: RankProcess) -> None:
    """Until nothing is alive there."""
    wait_until(
        lambda: not at_rest(rank.call("snapshot")),
        lambda: f"{rank.name} at rest: {at_rest(rank.call('snapshot'))}",
        HANG_S,
    )


def run(
    rounds: int, seed: int, *, limit_s: float, kinds: tuple[str, ...] = KINDS, concurrency: int = CONCURRENCY
) -> list[Tally]:
    """So many kills of each kind."""
    tallies = []
    for kind in kinds:
        with Scene(kind, seed, concurrency) as scene:
            tallies.append(scene.tally)
            for number in range(rounds):
                try:
                    scene.round(limit_s)
                except AssertionError as error:
                    scene.tally.violations.append(f"round {number + 1}: {error}")
                    break
    return tallies


def main() -> int:
    """The command line."""
    parser = command_line.parser("Kill and restart processes in the middle of traffic")
    parser.add_argument("--rounds", type=int, default=20, help="kills of each kind")
    parser.add_argument("--load", type=int, default=0, help="busy processes beside: full load, with a limit of 5 s")
    given = parser.parse_args()
    seed = command_line.chosen_seed(given.seed)
    limit_s = 5.0 if given.load else 2.0
    with ExitStack() as stack:
        for _ in range(given.load):
            burner = stack.enter_context(subprocess.Popen([sys.executable, "-c", BURN]))
            stack.callback(burner.kill)
        tallies = run(given.rounds, seed, limit_s=limit_s)
    command = command_line.repeat("tests.long.kill_rounds", seed, f"--rounds {given.rounds} --load {given.load}")
    violations = [f"{tally.kind}: {text}" for tally in tallies for text in tally.violations]
    return command_line.report(
        "kill -9 in the middle of traffic", [t.row() for t in tallies], violations, command=command, as_json=given.json
    )


if __name__ == "__main__":
    sys.exit(main())
