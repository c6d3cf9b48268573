"""A room with several sources and several destinations that is given up in the middle, and the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.support.orders import Outcome
from tests.unequal.judge import PATIENT, Result, drawn, orders, served, spoiled, told_of
from tests.unequal.pairs import Pair, pair
from tests.unequal.scene import Member, Scene, Workers


@dataclass(frozen=True)
class Fault:
    """A shape, the rank on which its room is given up, and whether that is killed. ``dummies``: prefill ranks that send nothing."""

    shape: Pair
    victim: tuple[str, tuple[int, int, int, int]]
    killed: bool
    what: str
    dummies: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def name(self) -> str:
        """For a table."""
        return f"{self.shape.name}: {self.what} {'is killed' if self.killed else 'aborts'}"


SMALL = pair("faults", "pp 2 to cp 2", {"pp": 2}, {"cp": 2}, cuts=((1, 2), (2,)), tokens=16, state=False)
"""Layer 0 comes from one rank, layer 1 and rows from the other, to both decode ranks."""
LARGE = pair(
    "faults", "tp 2, pp 2 to cp 2, MLA", {"tp": 2, "pp": 2}, {"cp": 2}, cuts=((1, 2), (2,)), mla=True, tokens=16,
    state=False,
)  # fmt: skip
"""Layer 0 comes from (0, 0, 0, 0), layer 1 from (1, 1, 0, 0), rows from (0, 1, 0, 0), to both decode ranks."""
DUMMY = (1, 0, 0, 0)
VICTIMS = (
    (SMALL, "decode", "decode", (0, 0, 1, 0)), (SMALL, "a source", "prefill", (0, 0, 0, 0)),
    (LARGE, "decode", "decode", (0, 0, 0, 0)), (LARGE, "a source", "prefill", (1, 1, 0, 0)),
    (LARGE, "the source of rows", "prefill", (0, 1, 0, 0)), (LARGE, "a dummy", "prefill", DUMMY),
)  # fmt: skip
FAULTS = tuple(
    Fault(shape, (role, place), killed, what, (DUMMY,) if shape is LARGE else ())
    for killed in (False, True)
    for shape, what, role, place in VICTIMS
)
REASON = "the client hung up"
LOST = ("peer_lost", "transport_error")
ALERT: dict[str, Any] = {"probe_interval_s": 1.0, "dead_after": 15}
"""A torn connection tells of a death soon; a busy machine is silent for a while."""
SLOW = {"options": {"faults": [{"kind": "delay", "every": 2, "seconds": 0.3}]}}
"""Of the embedded backend: every second transfer is still on its way when the room is given up."""


def run_fault(workers: Workers, fault: Fault, seed: int) -> Result:
    """Give the room up on one rank; it must fail on all of them for this reason, and the next one must go well."""
    rng = np.random.default_rng([seed, *fault.name.encode()])
    case = replace(fault.shape.case, seed=int(rng.integers(1 << 30)))
    config = drawn(workers, rng, **(ALERT if fault.killed else PATIENT), **(SLOW if workers.backend == "fake" else {}))
    result = Result(fault.name, workers.backend, fault.shape.ranks, ", ".join(told_of(config)))
    with Scene(workers, config=config) as scene:
        try:
            scene.prefill(case)
            scene.decode(case)
            (victim,) = (m for m in scene.members if (m.role, m.place) == fault.victim)
            result.problems += _give_up(scene, victim, rng, killed=fault.killed)
            if fault.killed:
                scene.again(victim, case)
            scene.ask(scene.members, "fill", generation=1)
            told = orders(scene.members, scene.server.address, next(workers.rooms), rng)
            scene.open(scene.members, told)
            outcomes = scene.ended(scene.members, told[0].room)
            result.problems += served(scene, scene.members, scene.members, outcomes)
            result.problems += parts(fault, scene.members, outcomes)
            result.problems += scene.rest(troubled=fault.killed)
            result.nbytes = sum(o.nbytes or 0 for o in outcomes if o.role == "decode")
        except AssertionError as error:
            result.problems.append(str(error))
            scene.failed = True
    return result


def _give_up(scene: Scene, victim: Member, rng: np.random.Generator, *, killed: bool) -> list[str]:
    room = next(scene.workers.rooms)
    told = orders(scene.members, scene.server.address, room, rng, style="pages", hold=True)
    scene.open(scene.members, told)
    scene.in_the_middle(scene.members, room)
    if killed:
        victim.process.kill()
    else:
        assert victim.process.call("abort", room=room, reason=REASON) == 1, "it was live"
    left = [member for member in scene.members if not killed or member is not victim]
    found = _reasons(left, scene.ended(left, room), victim, killed=killed)
    found += spoiled(scene, left)
    if killed:
        scene.members = left
        found += scene.rest(troubled=True)
        scene.members = [*left, victim]
    return found


def _reasons(left: Sequence[Member], outcomes: Sequence[Outcome], victim: Member, *, killed: bool) -> list[str]:
    found = []
    for member, outcome in zip(left, outcomes, strict=True):
        codes = LOST if killed else ("aborted_local" if member is victim else "aborted_remote",)
        if outcome.state != "Failed" or outcome.code not in codes:
            found.append(f"{member}: did not fail as {' or '.join(codes)}: {outcome}")
        elif not killed and REASON not in outcome.message:
            found.append(f"{member}: does not name the reason: {outcome}")
    return found


def parts(fault: Fault, members: Sequence[Member], outcomes: Sequence[Outcome]) -> list[str]:
    """The ranks must have had the parts that the shape gives them, or nothing was tried here."""
    idle = tuple(
        member.place for member, o in zip(members, outcomes, strict=True) if o.role == "prefill" and not o.nbytes
    )
    return [] if idle == fault.dummies else [f"{idle} sent nothing, {fault.dummies} should have"]
