"""The page that shows which check catches which mutant."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from conformance.tests.matrix.comparing import Map
from conformance.tests.mutants import Mutant
from kv_conformance.catalog import Check

HEAD = """\
# What the conformance suite catches

Made by `python -m conformance.tests.matrix --markdown docs/conformance-mutants.md`; do not edit.

Each *mutant* is kv-fake with one promise broken. The suite is run against all of them: a check that none of them fails
proves nothing, and a mutant that passes shows a hole. Not only the named check is compared, but the outcome of every
check that is run: all checks where the map is *complete* (all of the gate, if the named check is one of those), else the
named one and a few that most mutants leave green.

"""


def page(
    mutants: Sequence[Mutant], maps: Mapping[str, Map], checks: Sequence[Check], complete: Collection[str] = ()
) -> str:
    """Both tables as Markdown."""
    rank = {check.id: number for number, check in enumerate(checks)}
    broken = [one for one in mutants if not one.is_reference]
    whole = sum(one.name in complete for one in broken)
    lines = [f"{len(broken)} mutants, {len(checks)} checks; {whole} maps are complete.", "", "## Mutants", ""]
    lines += ["| mutant | what it breaks | caught by | fails also | map |", "|---|---|---|---|---|"]
    for one in sorted(broken, key=lambda one: (rank.get(one.caught_by, 0), one.name)):
        others = sorted((c for c in maps.get(one.name, {}) if c != one.caught_by), key=lambda check: rank.get(check, 0))
        others = [check for check in others if check not in one.sometimes]
        also = ", ".join(_short(others))
        if one.sometimes:
            also += f"{'; ' if also else ''}sometimes {', '.join(one.sometimes)}"
        lines.append(
            f"| `{one.name}` | {one.breaks} | {one.caught_by} | {also} | {'complete' if one.name in complete else ''} |"
        )
    lines += ["", "## Checks", "", "| check | level | mutants that fail it |", "|---|---|---|"]
    for check in checks:
        by = [f"`{one.name}`" for one in broken if maps.get(one.name, {}).get(check.id) == "failed"]
        named = [f"`{one.name}`" for one in broken if one.caught_by == check.id]
        more = len(set(by) - set(named))
        shown = ", ".join(named) + (
            f"{' and ' if named else ''}{more} {'others' if named else 'not named'}" if more else ""
        )
        lines.append(f"| {check.id} | {check.level.value} | {shown or '(none)'} |")
    return HEAD + "\n".join(lines) + "\n"


def _short(checks: Sequence[str]) -> list[str]:
    return [*checks[:8], f"and {len(checks) - 8} more"] if len(checks) > 9 else list(checks)
