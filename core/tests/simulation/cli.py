"""The command line: many seeds on several processes, one seed with its trace, and the mutants."""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.tests.simulation.mutants import MUTANTS, Mutant
from core.tests.simulation.world import Outcome, direction_of, run_seed
from kv_core.contract.enums import Direction

COMMAND = "python -m core.tests.simulation"
SHARE = 100
"""Seeds that a worker takes at once."""
MUTANT_LIMIT = 4_000
"""Schedules within which every mutant must be caught."""


@dataclass
class Tally:
    """What many schedules came to."""

    seeds: int = 0
    events: int = 0
    rooms: int = 0
    succeeded: int = 0
    profiles: Counter[str] = field(default_factory=Counter)
    broken: list[Outcome] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count the other's too."""
        self.seeds += other.seeds
        self.events += other.events
        self.rooms += other.rooms
        self.succeeded += other.succeeded
        self.profiles.update(other.profiles)
        self.broken += other.broken


@dataclass(frozen=True)
class Catch:
    """How a mutant was found out; ``schedules`` is 0 if it was not."""

    mutant: str
    target: str
    what: str
    schedules: int
    invariant: str = ""
    text: str = ""


def tally(seeds: range) -> Tally:
    """Run these schedules with the machines as they are."""
    result = Tally()
    for seed in seeds:
        outcome = run_seed(seed)
        result.seeds += 1
        result.events += outcome.events
        result.rooms += outcome.rooms
        result.succeeded += outcome.succeeded
        result.profiles[outcome.profile] += 1
        if outcome.broken:
            result.broken.append(outcome)
    return result


def hunt(name: str, start: int = 0, limit: int = MUTANT_LIMIT) -> Catch:
    """Run schedules with a mutant until one catches it."""
    mutant = next(each for each in MUTANTS if each.name == name)
    seeds = (seed for seed in itertools.count(start) if not mutant.pull or direction_of(seed) is Direction.READ)
    for count, seed in enumerate(itertools.islice(seeds, limit), 1):
        outcome = run_seed(seed, mutant.machines)
        if outcome.broken:
            return Catch(name, mutant.invariant, mutant.what, count, outcome.broken, outcome.text)
    return Catch(name, mutant.invariant, mutant.what, 0)


def shares(start: int, count: int) -> Iterator[range]:
    """The seeds in pieces of work."""
    for first in range(start, start + count, SHARE):
        yield range(first, min(first + SHARE, start + count))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 if nothing broke and every mutant was caught."""
    options = _options(argv)
    if options.seed is not None:
        return _one(options.seed, options.mutant, options.last)
    begun = time.monotonic()
    total = Tally()
    catches: list[Catch] = []
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for part in pool.imap_unordered(tally, shares(options.start, options.seeds)):
            total.add(part)
            _progress(options, f"{total.seeds} of {options.seeds} schedules, {len(total.broken)} broken")
        if options.mutants and not total.broken:
            hunted = [each.name for each in MUTANTS if options.mutant in {None, each.name}]
            for catch in pool.imap(hunt, hunted):
                catches.append(catch)
                _progress(options, f"{len(catches)} of {len(hunted)} mutants")
    _progress(options, "")
    seconds = time.monotonic() - begun
    if options.json:
        print(json.dumps(_as_json(total, catches, seconds), indent=2))
    else:
        _print(total, catches, seconds, asked=options.mutants)
    return 1 if total.broken or any(not catch.schedules for catch in catches) else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Run the protocol in virtual time, by seeds.")
    parser.add_argument("--seeds", type=int, default=20_000, help="how many schedules (default 20000)")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run this one schedule and print its trace")
    parser.add_argument("--last", type=int, default=60, help="with --seed: how many lines of the trace (0: all)")
    parser.add_argument("--mutant", choices=[each.name for each in MUTANTS], help="this broken machine only")
    parser.add_argument("--mutants", action="store_true", help="then see that each broken machine is caught")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def _one(seed: int, mutant: str | None, last: int) -> int:
    machines = next((each.machines for each in MUTANTS if each.name == mutant), None)
    outcome = run_seed(seed, machines, traced=True)
    for line in outcome.trace[-last:] if last else outcome.trace:
        print(line)
    print(f"seed {seed} ({outcome.profile}, {outcome.events} events): {outcome.text or 'nothing broke'}")
    return 1 if outcome.broken else 0


def _progress(options: argparse.Namespace, text: str) -> None:
    if not options.json and sys.stderr.isatty():
        print(f"\r{text:70}\r", end="", file=sys.stderr, flush=True)


def _print(total: Tally, catches: list[Catch], seconds: float, *, asked: bool) -> None:
    for outcome in sorted(total.broken, key=lambda each: each.seed)[:3]:
        _one(outcome.seed, None, 60)
        print(f"repeat with: {COMMAND} --seed {outcome.seed} --last 0\n")
    broken = Counter(outcome.broken for outcome in total.broken)
    print(
        f"{total.seeds} schedules, {total.events} events, {total.rooms} rooms ended, {total.succeeded} of them well; "
        f"invariants broken: {len(total.broken)}; {seconds:.0f} s"
    )
    for invariant, count in sorted(broken.items()):
        seeds = [outcome.seed for outcome in total.broken if outcome.broken == invariant]
        print(f"  {invariant}: {count} (seeds {', '.join(map(str, sorted(seeds)[:10]))})")
    if asked and total.broken:
        print("mutants were not tried: the machines themselves have to be well first")
    if catches:
        print(f"\n{'broken machine':22} {'made to break':14} {'caught by':14} {'schedules':>9}  what it does")
    for catch in catches:
        found = str(catch.schedules) if catch.schedules else "NEVER"
        print(f"{catch.mutant:22} {catch.target:14} {catch.invariant:14} {found:>9}  {catch.what}")


def _as_json(total: Tally, catches: list[Catch], seconds: float) -> dict[str, Any]:
    return {
        "schedules": total.seeds,
        "events": total.events,
        "rooms": total.rooms,
        "succeeded": total.succeeded,
        "profiles": dict(sorted(total.profiles.items())),
        "seconds": round(seconds, 1),
        "broken": [
            {
                "seed": outcome.seed, "invariant": outcome.broken, "text": outcome.text,
                "repeat": f"{COMMAND} --seed {outcome.seed} --last 0",
            }
            for outcome in sorted(total.broken, key=lambda each: each.seed)
        ],
        "mutants": [
            {
                "name": catch.mutant, "invariant": catch.target, "caught_by": catch.invariant, "schedules": catch.schedules,
                "what": catch.what, "text": catch.text,
            }
            for catch in catches
        ],
    }  # fmt: skip


__all__ = ["Catch", "Mutant", "Tally", "hunt", "main", "tally"]
