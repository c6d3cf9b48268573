"""What a mutant's run must look like, and what it does look like. Pure, but for the file of the recorded maps."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conformance.tests.matrix.running import Ran
from conformance.tests.mutants import Mutant

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECORDED = Path(__file__).resolve().parent.parent / "mutants" / "expected.toml"
"""What each mutant changed the last time that somebody looked at it: written by ``--write``, and read by a human."""
GREEN = ("passed", "refused")
HEAD = """\
# What each mutant changes in comparison with its reference: outcome -> checks. Written by
#   python -m conformance.tests.matrix --write
# and reviewed: is each of these checks meant to fail for what the mutant breaks? Checks that are `sometimes` among them
# stand in the mutant's own definition. `complete`: every check was run against it (--whole; those of the gate, if the named
# one is among them), so what is not listed is as the reference; else the named check and the canaries.
"""
COMPLETE = "complete"
Map = dict[str, str]


def changes(ran: Ran, reference: Ran) -> Map:
    """Check -> outcome, where it differs from the reference's."""
    return {check: outcome for check, outcome in ran.outcomes.items() if outcome != reference.outcomes.get(check)}


def reference_faults(ran: Ran) -> list[str]:
    """Why nothing that is compared with this reference means anything; empty if it is all green."""
    bad = {check: outcome for check, outcome in ran.outcomes.items() if outcome not in GREEN}
    return [f"{ran.name}: {check} is {outcome}: {ran.details[check]}" for check, outcome in bad.items()]


def faults(mutant: Mutant, ran: Ran, reference: Ran, recorded: Map | None) -> list[str]:
    """Everything that is not as it should be about this mutant's run."""
    seen = changes(ran, reference)
    found = []
    if seen.get(mutant.caught_by) != "failed":
        outcome = ran.outcomes.get(mutant.caught_by, "not run")
        found.append(f"survived: {mutant.caught_by} is {outcome} {ran.details.get(mutant.caught_by, '')}".rstrip())
    if recorded is not None:
        found += _differences(
            mutant, ran, seen, {check: out for check, out in recorded.items() if check in ran.outcomes}
        )
    return found


def _differences(mutant: Mutant, ran: Ran, seen: Map, recorded: Map) -> list[str]:
    checks = sorted((seen.keys() | recorded.keys()) - set(mutant.sometimes))
    return [
        f"{check} is {ran.outcomes[check]}, recorded is {recorded.get(check, 'as the reference')}: {ran.details[check][:200]}"
        for check in checks
        if seen.get(check) != recorded.get(check)
    ]


def uncovered(musts: Iterable[str], recorded: Mapping[str, Map], mutants: Mapping[str, Mutant]) -> list[str]:
    """MUST checks that no mutant fails."""
    failed = {
        check
        for name, one in recorded.items()
        for check, outcome in one.items()
        if outcome == "failed" and name in mutants and check not in mutants[name].sometimes
    }
    return [check for check in musts if check not in failed]


def read_recorded(path: Path = RECORDED) -> dict[str, Map]:
    """The recorded maps by mutant."""
    return {
        name: {check: outcome for outcome, checks in table.items() if outcome != COMPLETE for check in checks}
        for name, table in _tables(path).items()
    }


def read_complete(path: Path = RECORDED) -> set[str]:
    """The mutants whose recorded map is complete."""
    return {name for name, table in _tables(path).items() if table.get(COMPLETE)}


def _tables(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_recorded(
    maps: Mapping[str, Map], order: Sequence[str], complete: Collection[str] = (), path: Path = RECORDED
) -> None:
    """Write the maps, in this order of checks."""
    rank = {check: number for number, check in enumerate(order)}
    blocks = [HEAD]
    for name, one in maps.items():
        lines = [f"[{name}]"]
        for outcome in sorted(set(one.values())):
            checks = sorted((c for c, o in one.items() if o == outcome), key=lambda check: rank.get(check, 0))
            lines.append(f"{outcome} = [" + ", ".join(f'"{check}"' for check in checks) + "]")
        if name in complete:
            lines.append(f"{COMPLETE} = true")
        blocks.append("\n".join(lines) + "\n")
    path.write_text("\n".join(blocks), encoding="utf-8")
