"""Pairs that must be refused, each with the rule that it breaks, beside a decode instance that prefill goes on serving."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from core.tests.layout.topologies.model import Case, Side
from tests.unequal.judge import PATIENT, Result, drawn, orders, served, taking_part, told_of
from tests.unequal.pairs import Pair, stages
from tests.unequal.scene import Member, Scene, Workers


@dataclass(frozen=True)
class RefusedPair:
    """``good``: what prefill serves, a decode instance of prefill's own shape. ``bad``: what it can't serve.

    ``rules``: what both sides' sentences must match, all of them. ``twist``: of all engines; ``bad_twist``: of decode's that is
    refused.
    ``pools``: of state, on all ranks; ``bad_pools``: on the refused ones. ``dp_rank``: of prefill, as decode names it.
    """

    name: str
    rules: tuple[str, ...]
    good: Case
    bad: Case
    twist: str = ""
    bad_twist: str = ""
    pools: tuple[str, ...] = ()
    bad_pools: tuple[str, ...] | None = None
    dp_rank: int = 0

    @property
    def counts(self) -> tuple[int, int, int]:
        """Processes of prefill, of decode that is served, and of decode that is refused."""
        good, bad = (Pair("refused", self.name, case).counts for case in (self.good, self.bad))
        return good[0], good[1], bad[1]

    @property
    def count(self) -> int:
        """All of these."""
        return sum(self.counts)

    @property
    def ranks(self) -> str:
        """For a table."""
        return "+".join(map(str, self.counts))


def refused(
    name: str, rules: tuple[str, ...], source: dict[str, Any], destination: dict[str, Any],
    cuts: tuple[tuple[int, ...], tuple[int, ...]] = ((3,), (3,)), bad: dict[str, Any] | None = None, **more: Any,
) -> RefusedPair:  # fmt: skip
    """``bad``: in what else decode's model is another one."""
    ours, theirs = stages(*cuts[0]), stages(*cuts[1])
    case = Case(Side(**source), Side(**source), stages=(ours, ours), tokens=12, **more.pop("model", {}))
    other = replace(case, destination=Side(**destination), stages=(ours, theirs), **(bad or {}))
    return RefusedPair(name, rules, case, other, **more)


EQUAL = "sizes must be equal on both sides unless both describe their items"
WINDOW_PAGES = (
    "a state component that is kept in pages needs pages of one size, and the same context parallelism, on both sides"
)
EVEN = "the units of a part must be shared evenly"

REFUSED = (
    refused("3 heads, tp 2 to 1", (EVEN, "3 units by 2 ranks"), {"tp": 2}, {}, bad={"heads": 3}),
    refused("3 heads, tp 1 to 2", (EVEN, "3 units by 2 ranks"), {}, {"tp": 2}, model={"heads": 3}, bad={"heads": 4}),
    refused(
        "pages of 4 to 6 tokens",
        (
            "one page size must divide the other",
            r"(page_size|kv.tokens) \((local|prefill) '?(4'?, \w+ '?6|6'?, \w+ '?4)'?\)",
        ),
        {"page": 4},
        {"page": 6},
    ),
    refused("opaque KV, tp 2 to 1", (EQUAL, "tp_size"), {"tp": 2}, {}, twist="opaque KV"),
    refused("opaque KV, pp 2 to 1", (EQUAL, "pp_size"), {"pp": 2}, {}, ((2, 3), (3,)), twist="opaque KV"),
    refused("opaque KV, cp 1 to 2", (EQUAL, "cp_size"), {}, {"cp": 2}, twist="opaque KV"),
    refused("KV described here and opaque there, tp 2 to 1", (EQUAL, "tp_size"), {"tp": 2}, {}, bad_twist="opaque KV"),
    refused(
        "opaque state, tp 2 to 1",
        ("items are not described", "equal tensor parallel sizes only", "conv: tp_size"),
        {"tp": 2},
        {},
        twist="opaque state",
        pools=("conv",),
    ),
    refused(
        "another model",
        (r"model \(prefill 'model', decode 'another model'\)",),
        {"tp": 2},
        {},
        bad_twist="another model",
    ),
    refused(
        "another dtype",
        (r"dtype \(prefill 'bfloat16', decode 'float8_e4m3fn'\)",),
        {},
        {"tp": 2},
        bad_twist="another dtype",
    ),
    refused(
        "another drafting model",
        (r"extra.speculative \(prefill 'one', decode 'another'\)",),
        {"pp": 2},
        {},
        ((2, 3), (3,)),
        bad_twist="another drafting model",
    ),
    refused(
        "MLA to heads",
        (r"kv.part \(prefill \"'latent'\", decode \"'k', 'v'\"\)",),
        {"tp": 2},
        {},
        model={"heads": 1, "mla": True},
        bad={"mla": False},
    ),
    refused(
        "window pages, page sizes 2 to 4",
        (WINDOW_PAGES, "window.tokens.*2 tokens.*4 tokens"),
        {"page": 2},
        {"page": 4},
        pools=("window",),
    ),
    refused(
        "window pages, cp 1 to 2",
        (WINDOW_PAGES, r"window.tokens.*cp 0 of 1.*cp \d of 2"),
        {},
        {"cp": 2},
        pools=("window",),
    ),
    refused(
        "layers that nobody has",
        (
            "each layer that a decode rank has must be on one of the prefill ranks",
            r"kv.layer \(prefill '0\.\.3', decode '0\.\.4'\)",
        ),
        {"pp": 2},
        {},
        ((2, 4), (5,)),
    ),
    refused(
        "as many stages with other layers",
        ("as many pipeline stages must have the same layers", "kv.layer"),
        {"pp": 2},
        {"pp": 2},
        ((2, 4), (1, 4)),
    ),
    refused(
        "state on one side only",
        (r"pool conv \(prefill '3 buffers', decode 'absent'\)",),
        {"tp": 2},
        {"tp": 2},
        pools=("conv",),
        bad_pools=(),
    ),
    refused("prefill_dp_rank 2 of 2", (r"prefill_dp_rank must lie in 0\.\.1",), {"dp": 2}, {"tp": 2}, dp_rank=2),
)


def run_refused(workers: Workers, pair: RefusedPair, seed: int) -> Result:
    """A good room stands in the middle while another instance is refused, twice; then it goes on to its end."""
    rng = np.random.default_rng([seed, *pair.name.encode()])
    number = int(rng.integers(1 << 30))
    good, bad = replace(pair.good, seed=number), replace(pair.bad, seed=number)
    config = drawn(workers, rng, **PATIENT)
    result = Result(pair.name, workers.backend, pair.ranks, ", ".join(told_of(config)))
    with Scene(workers, config=config) as scene:
        try:
            prefill = scene.prefill(good, pools=pair.pools, twist=pair.twist)
            decode = scene.decode(good, pools=pair.pools, twist=pair.twist)
            pools = pair.pools if pair.bad_pools is None else pair.bad_pools
            others = scene.decode(bad, pools=pools, twist=pair.bad_twist or pair.twist)
            mine = taking_part(prefill, 0)
            told = orders([*mine, *decode], scene.server.address, next(workers.rooms), rng, style="pages", hold=True)
            scene.open([*mine, *decode], told)
            scene.in_the_middle([*mine, *decode], told[0].room)
            for first in (mine, others):
                result.problems += _refuse(scene, pair, [first, others if first is mine else mine], rng)
            for member in (*mine, *decode):
                member.process.call("go", room=told[0].room)
            outcomes = scene.ended([*mine, *decode], told[0].room)
            result.problems += served(scene, [*prefill, *decode], [*mine, *decode], outcomes)
            result.nbytes = sum(o.nbytes or 0 for o in outcomes if o.role == "decode")
            result.problems += scene.rest()
        except AssertionError as error:
            result.problems.append(str(error))
            scene.failed = True
    return result


def _refuse(scene: Scene, pair: RefusedPair, sides: Sequence[Sequence[Member]], rng: np.random.Generator) -> list[str]:
    """One room that must fail on all ranks; it is opened on one side after the other, in this order."""
    everybody = [*sides[0], *sides[1]]
    told = orders(everybody, scene.server.address, next(scene.workers.rooms), rng, dp_rank=pair.dp_rank)
    by_member = dict(zip(everybody, told, strict=True))
    for side in sides:
        scene.open(side, [by_member[member] for member in side])
    outcomes = scene.ended(everybody, told[0].room)
    found = []
    for member, outcome in zip(everybody, outcomes, strict=True):
        if (outcome.state, outcome.code, outcome.stage) != ("Failed", "incompatible", "handshake"):
            found.append(f"{member}: not refused: {outcome}")
        elif not all(re.search(rule, _turned(outcome.message)) for rule in pair.rules):
            found.append(f"{member}: does not name the rule {pair.rules}: {outcome}")
        elif outcome.retryable:
            found.append(f"{member}: refused, and yet to be tried again: {outcome}")
    refused_ranks = [member for member in everybody if member.role == "decode"]
    for member, count in zip(refused_ranks, scene.ask(refused_ranks, "count", served=False), strict=True):
        if count["wrong"]:
            found.append(f"{member}: bytes came although it was refused: {count}")
    return found


def _turned(message: str) -> str:
    """A refusal that decode's rank wrote names decode's values first: prefill's come first here."""
    return re.sub(r"\((decode [^()]*), (prefill [^()]*)\)", r"(\2, \1)", message)
