"""Every finding of the doctor's own, by area, for the documentation."""

from __future__ import annotations

from types import ModuleType

from kv_core.cli.doctor import addresses, devices, examine, host, installed, limits, live, peer
from kv_core.contract.doctor import FindingKind

AREAS = (installed, devices, host, limits, addresses, live, peer, examine)


def all_kinds() -> dict[str, list[FindingKind]]:
    """The kinds by the area that their ids begin with, in the order in which they stand in the code."""
    found: dict[str, list[FindingKind]] = {}
    for module in AREAS:
        for kind in kinds_of(module):
            found.setdefault(kind.id.partition(".")[0], []).append(kind)
    return found


def kinds_of(module: ModuleType) -> list[FindingKind]:
    """The kinds that a module has, a plugin's too."""
    return [value for value in vars(module).values() if isinstance(value, FindingKind)]


def as_markdown(kinds: list[FindingKind]) -> str:
    """A table of findings: id, status, sentence, what to do."""
    lines = ["| id | status | what is said | what to do |", "|---|---|---|---|"]
    for kind in kinds:
        cells = (f"`{kind.id}`", kind.status.value, kind.message, kind.remedy or "-")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
