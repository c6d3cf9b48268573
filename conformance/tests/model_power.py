"""How well the state machines find what only they can find: ``python -m conformance.tests.model_power``.

For each mutant of ``mutants.model_mutants`` and each of several seeds one run of its check. A mutant that the gate's budget
misses with any seed asks for another mix of acts in the machine, or for a greater budget.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from conformance.tests.matrix.running import Ran, run
from conformance.tests.mutants import MUTANTS, Mutant, model_mutants

BOTH = ("stale_life", "stale_life_seldom", "cross_room", "cross_room_seldom")
"""Broken transports: to be found by both machines."""


def named(name: str) -> Mutant:
    """A mutant as it is to be installed: whether or not the package imports ``model_mutants``, its plugin does."""
    mutant = MUTANTS[name]
    module = model_mutants.__name__.rpartition(".")[2]
    return replace(mutant, plugin=mutant.plugin.replace("from {package} import", f"from {{package}}.{module} import"))


def try_one(name: str, check: str, seed: int, *, gate: bool = True) -> Ran:
    """Run one check against one mutant."""
    return run(named(name), gate=gate, only=(check,), seed=seed)


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """(mutant, check) of all mutants of ``model_mutants``, or of these."""
    mine = [one for one in MUTANTS.values() if one.where == model_mutants.__name__.rpartition(".")[2]]
    wanted = [one for one in mine if not names or one.name in names]
    found = [(one.name, one.caught_by) for one in wanted]
    return found + [(one.name, "KV-MODEL-2") for one in wanted if one.name in BOTH]


def main() -> int:
    """Print a line for each run, and a table; 1 if something was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--full", action="store_true", help="the full budget instead of the gate's")
    parser.add_argument("names", nargs="*")
    asked = parser.parse_args()
    lines, missed = [], 0
    for name, check in pairs(asked.names):
        caught = 0
        for seed in range(1, asked.seeds + 1):
            ran = try_one(name, check, seed, gate=not asked.full)
            outcome = ran.outcomes[check]
            caught += outcome == "failed"
            print(
                f"{name}, {check}, seed {seed}: {outcome} after {ran.seconds:.0f} s. {ran.details[check][:160]}",
                flush=True,
            )
        missed += asked.seeds - caught
        lines.append(f"{name:28} {check:12} {caught} of {asked.seeds}")
    print("\n".join(lines))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
