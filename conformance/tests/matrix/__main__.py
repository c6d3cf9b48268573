"""``python -m conformance.tests.matrix``."""

from __future__ import annotations

import argparse
import fcntl
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from time import monotonic

from conformance.tests.matrix.comparing import (
    Map,
    changes,
    faults,
    read_complete,
    read_recorded,
    reference_faults,
    uncovered,
    write_recorded,
)
from conformance.tests.matrix.pages import page
from conformance.tests.matrix.running import Ran, RunError, run
from conformance.tests.mutants import MUTANTS, Mutant
from kv_conformance.catalog import Check, Level, all_checks

CANARIES = ("KV-ID-8", "KV-XFER-1", "KV-XFER-11")
"""Run against every mutant: one of the plugin, one of a transport, one of rooms. Most mutants leave them green, so that one
which is caught only because it is broken altogether is seen.
"""


LOCK = Path(tempfile.gettempdir(), "kv-conformance-matrix.lock")


class Session:
    """One session of the matrix: references first, then mutants."""

    def __init__(self, checks: Sequence[Check], asked: argparse.Namespace) -> None:
        self.checks = checks
        self.asked = asked
        self.gates = {check.id: check.gate for check in checks}
        self.recorded = read_recorded()
        self.complete = read_complete()
        self.needed: dict[str, set[str]] = {}
        self.references: dict[str, Ran] = {}
        self.maps: dict[str, Map] = {}
        self.troubles: list[str] = []
        self.doubtful: list[Mutant] = []
        self.alone = asked.jobs == 1
        self.begin = monotonic()
        self.principals: dict[str, Mutant] = {}
        for one in (one for one in MUTANTS.values() if not one.is_reference):
            self.principals.setdefault(one.caught_by, one)

    def main(self) -> int:
        """Run everything; the exit status."""
        mutants = self.chosen()
        unknown = set(self.asked.only) - set(MUTANTS)
        if unknown:
            self.say(f"no mutant is named {', '.join(sorted(unknown))}")
            return 2
        broken = [one for one in mutants if not one.is_reference]
        strange = [
            f"{one.name}: there is no check {one.caught_by}" for one in broken if one.caught_by not in self.gates
        ]
        if strange:
            self.say("\n".join(strange))
            return 2
        for one in broken:
            self.needed.setdefault(one.like, set()).update(self.scope(one)[1] or self.gates)
        for one in mutants:
            if one.is_reference and (self.asked.whole or self.asked.only):
                self.needed[one.name] = set(self.gates)
        self.each([MUTANTS[name] for name in self.needed], self.reference)
        if self.troubles:
            self.say("a reference is not all green: nothing that is compared with it would mean anything")
            return 1
        self.each(broken, self.mutant)
        self.again()
        if not (self.asked.only or self.asked.incomplete):
            self.cover()
        self.write()
        again = f", {len(self.doubtful)} run again" if self.doubtful else ""
        self.say(f"{len(broken)} mutants{again}, {len(self.troubles)} troubles, {monotonic() - self.begin:.0f} s")
        return 1 if self.troubles else 0

    def chosen(self) -> list[Mutant]:
        """Those that were named; else the first of each check (--first); else those whose map is recorded, or all (--write)."""
        if self.asked.only:
            return [one for one in MUTANTS.values() if one.name in self.asked.only]
        broken = [one for one in MUTANTS.values() if not one.is_reference]
        if self.asked.incomplete:
            broken = [one for one in broken if one.name not in self.complete]
        if self.asked.first:
            return [one for one in broken if one is self.principals[one.caught_by]]
        if self.asked.write or self.asked.incomplete:
            return broken
        new = [one.name for one in broken if one.name not in self.recorded]
        if new:
            self.say(
                f"{len(new)} mutants have no recorded map yet and are left out (--write takes them in): {', '.join(new)}"
            )
        return [one for one in MUTANTS.values() if one.name not in new]

    def again(self) -> None:
        """Those that were not as they should be, once more and by themselves: several at a time disturb each other, and what
        is caught in the moment in which it is wrong may then be looked at too late. What is seen now counts.
        """
        if self.doubtful:
            names = ", ".join(one.name for one in self.doubtful)
            self.say(f"{len(self.doubtful)} are run again, one at a time: {names}")
            self.alone = True
            self.asked.jobs = 1
            self.each(self.doubtful, self.mutant)

    def each(self, mutants: Sequence[Mutant], one: Callable[[Mutant], str]) -> None:
        """Several at a time, with a line for each."""
        with ThreadPoolExecutor(self.asked.jobs) as pool:
            running = {pool.submit(one, mutant): mutant for mutant in mutants}
            for number, done in enumerate(as_completed(running), 1):
                name = running[done].name
                try:
                    text = done.result()
                except RunError as error:
                    text = str(error)
                    self.troubles.append(text)
                self.say(f"[{number}/{len(mutants)} {monotonic() - self.begin:5.0f} s] {name:34} {text}")
                self.record()  # now, too: a matrix takes an hour, and what it has found shall outlive a Ctrl-C

    def reference(self, mutant: Mutant) -> str:
        """Run against a reference whatever is run against a mutant that is compared with it."""
        ran = run(mutant, only=sorted(self.needed[mutant.name]), seed=self.asked.seed)
        bad = reference_faults(ran)
        self.troubles += bad
        self.references[mutant.name] = ran
        return f"{ran.seconds:5.1f} s  " + ("\n".join(["", *bad]) if bad else f"all {len(ran.outcomes)} green")

    def mutant(self, mutant: Mutant) -> str:
        """Run a mutant and compare."""
        gate, only = self.scope(mutant)
        ran = run(mutant, gate=gate, only=only, seed=self.asked.seed)
        reference = self.references[mutant.like]
        seen = changes(ran, reference)
        before = self.recorded.get(mutant.name, {})
        others = {
            check: outcome for check, outcome in before.items() if check in self.gates and check not in ran.outcomes
        }
        self.maps[mutant.name] = others | {c: outcome for c, outcome in seen.items() if c not in mutant.sometimes}
        if not only:
            self.complete.add(mutant.name)
        recorded = None if self.asked.write else before
        bad = faults(mutant, ran, reference, recorded)
        if self.alone:
            self.troubles += [f"{mutant.name}: {text}" for text in bad]
        elif bad:
            self.doubtful.append(mutant)
        also = [check for check in seen if check != mutant.caught_by]
        if bad:
            return "\n".join(
                [f"{ran.seconds:5.1f} s", *(f"    {text}" for text in bad), f"    others: {', '.join(also)}"]
            )
        return f"{ran.seconds:5.1f} s  {mutant.caught_by}{f' and {len(also)} others' if also else ''}"

    def scope(self, mutant: Mutant) -> tuple[bool, tuple[str, ...]]:
        """Which checks are run against it: (only those of the gate, only these)."""
        named = mutant.caught_by
        if not self.asked.whole:
            return False, tuple(dict.fromkeys((named, *CANARIES)))
        if mutant is self.principals[named]:
            return self.gates[named], ()
        return self.gates[named], (named.rpartition("-")[0], *CANARIES)

    def cover(self) -> None:
        """Is there a mutant for each check?"""
        musts = [check.id for check in self.checks if check.level is Level.MUST]
        for check in uncovered(musts, self.maps, MUTANTS):
            self.troubles.append(f"no mutant fails {check}")
            self.say(self.troubles[-1])

    def write(self) -> None:
        """Record the maps, and make the page, where it was asked for."""
        maps = self.record()
        if self.asked.markdown:
            shown = [one for one in MUTANTS.values() if one.is_reference or one.name in maps]
            text = page(shown, maps, self.checks, self.complete)
            self.asked.markdown.write_text(text, encoding="utf-8")

    def record(self) -> dict[str, Map]:
        """All maps that there are; with --write they are in the file then."""
        seen = dict(self.maps)
        maps = {name: seen.get(name, self.recorded.get(name, {})) for name in MUTANTS if not MUTANTS[name].is_reference}
        maps = {name: one for name, one in maps.items() if one}
        if self.asked.write:
            write_recorded(maps, [check.id for check in self.checks], set(self.complete))
        return maps

    @staticmethod
    def say(text: str) -> None:
        """A line for whoever watches."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m conformance.tests.matrix", description=__doc__)
    add = parser.add_argument
    add("--only", action="append", default=[], metavar="NAME", help="only this mutant; may be given again")
    add("--write", action="store_true", help="record what is seen in mutants/expected.toml")
    add("--first", action="store_true", help="of the mutants of one check only the first")
    add("--incomplete", action="store_true", help="only those whose recorded map is not complete")
    add("--jobs", type=int, default=2, help="mutants at a time (2)")
    add(
        "--whole",
        action="store_true",
        help="every check for the first mutant of each check, the named check's area for the others (an hour or two)",
    )
    add("--seed", type=int, default=0, help="the suite's seed (0)")
    add("--markdown", type=Path, metavar="FILE", help="write the page")
    asked = parser.parse_args(arguments)
    with LOCK.open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stdout.write(
                "another matrix is running on this machine; two at a time disturb each other: wait for its end\n"
            )
            return 2
        return Session(all_checks(), asked).main()


if __name__ == "__main__":
    sys.exit(main())
