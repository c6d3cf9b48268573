"""A pair of shapes, served once: what was wrong on any rank, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tests.support.orders import Outcome
from tests.unequal.engine import RoomOrder
from tests.unequal.pairs import Pair
from tests.unequal.scene import Member, Scene, Workers
from tests.unequal.sending import STYLES

PATIENT: dict[str, Any] = {"probe_interval_s": 5.0}
"""Nobody dies here, and eight processes may be slow on a busy machine."""


AREAS = (64 << 20, 1 << 10, 0)
"""Sizes of a staging area."""


@dataclass
class Result:
    """What a pair came to. ``nbytes``: that were moved, over all decode ranks; ``staged``: in so many batches by way of an area."""

    name: str
    backend: str
    ranks: str
    how: str = ""
    nbytes: int = 0
    staged: int = 0
    problems: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """For the report."""
        told = "ok" if not self.problems else "WRONG"
        return {
            "pair": self.name, "ranks": self.ranks, "backend": self.backend, "how": self.how, "bytes": self.nbytes, "staged": self.staged,
            "result": told,
        }  # fmt: skip


def orders(members: Sequence[Member], addr: str, room: int, rng: np.random.Generator, **more: Any) -> list[RoomOrder]:
    """A room as each rank gets it: who comes early, and in which pieces prefill sends, is drawn."""
    style = more.pop("style", None) or STYLES[int(rng.integers(len(STYLES)))]
    early = {role: bool(rng.integers(2)) for role in ("prefill", "decode")}
    order = RoomOrder(room, addr, seed=int(rng.integers(1 << 30)), style=style, **more)
    return [replace(order, early=early[member.role]) for member in members]


def taking_part(members: Sequence[Member], dp_rank: int) -> list[Member]:
    """Those that have a room: of prefill's data-parallel ranks one."""
    return [member for member in members if member.role == "decode" or member.place[3] == dp_rank]


def drawn(workers: Workers, rng: np.random.Generator, **more: Any) -> dict[str, Any]:
    """Settings of all managers: half of the rooms are verified by digests, and half are pulled where the backend reads. Of three
    one has the staging area that everybody has, one a small one, one has none.
    """
    digest, reads = ("off", "all")[int(rng.integers(2))], bool(rng.integers(2)) and workers.reads
    area = {"staging_bytes": AREAS[int(rng.integers(len(AREAS)))]}
    return {"digest": digest, "direction": "read" if reads else "write", **area, **more}


def staged(scene: Scene, members: Sequence[Member]) -> int:
    """How many batches went by way of a staging area, over all ranks."""
    return sum(told["transfers"]["totals"]["staged_batches"] for told in scene.ask(members, "snapshot"))


def told_of(config: dict[str, Any]) -> list[str]:
    """What was drawn, for a table."""
    area = config["staging_bytes"]
    words = {
        "digests": config["digest"] == "all", "pull": config["direction"] == "read", f"area of {area}": area != AREAS[0],
    }  # fmt: skip
    return [word for word, said in words.items() if said]


def run_pair(workers: Workers, pair: Pair, seed: int) -> Result:
    """Serve the pair, with everything drawn by the seed, and compare all memory of all ranks."""
    rng = np.random.default_rng([seed, *pair.name.encode()])
    case = replace(pair.case, seed=int(rng.integers(1 << 30)))
    config = drawn(workers, rng, **PATIENT)
    result = Result(pair.name, workers.backend, pair.ranks)
    with Scene(workers, config=config) as scene:
        try:
            members = scene.prefill(case) + scene.decode(case)
            mine = taking_part(members, pair.dp_rank)
            told = orders(mine, scene.server.address, next(workers.rooms), rng, dp_rank=pair.dp_rank)
            early = {f"{member.role} early": None for member, order in zip(mine, told, strict=True) if order.early}
            result.how = ", ".join([told[0].style, *told_of(config), *early])
            scene.open(mine, told)
            outcomes = scene.ended(mine, told[0].room)
            result.problems += served(scene, members, mine, outcomes)
            result.problems += scene.rest()
            result.staged = staged(scene, members)
            result.nbytes = sum(o.nbytes or 0 for o in outcomes if o.role == "decode")
        except AssertionError as error:
            result.problems.append(str(error))
            scene.failed = True
    return result


def served(scene: Scene, members: Sequence[Member], mine: Sequence[Member], outcomes: Sequence[Outcome]) -> list[str]:
    """What is wrong after a room that must have gone well on ``mine``, of all ``members`` of its case."""
    found = [
        f"{member}: {outcome}" for member, outcome in zip(mine, outcomes, strict=True) if outcome.state != "Success"
    ]
    counts = dict(zip(members, scene.ask(members, "count", served=True), strict=True))
    for member, count in counts.items():
        if count["wrong"]:
            found.append(f"{member}: wrong bytes: {count}")
    told = dict(zip(mine, outcomes, strict=True))
    for member, outcome in told.items():
        if outcome.role == "decode" and not outcome.nbytes == counts[member]["written"] == counts[member]["wanted"]:
            found.append(f"{member}: its metric says {outcome.nbytes} bytes, its memory {counts[member]}")
    sent, received = (sum(o.nbytes or 0 for o in outcomes if o.role == role) for role in ("prefill", "decode"))
    if sent != received:
        found.append(f"prefill's ranks say that they sent {sent} bytes, decode's that they got {received}")
    return found


def spoiled(scene: Scene, members: Sequence[Member]) -> list[str]:
    """What is wrong in memory where a room failed: sources changed, bytes elsewhere than in the pages that it named. Of those it
    may have written some.
    """
    found = []
    for member, count in zip(members, scene.ask(members, "count", served=True), strict=True):
        if count["wrong"] != count["missing"]:
            found.append(f"{member}: wrong bytes: {count}")
    return found
