"""Write docs/lifecycle.md from the life cycle tables; with --check, fail if the file is not what the tables say."""

from __future__ import annotations

import sys
from pathlib import Path

from kv_core.protocol.lifecycle import DECODE, POLL, PREFILL, Phase, Table, diagram

PAGE = Path(__file__).parent.parent / "docs" / "lifecycle.md"


def _rows(table: Table) -> str:
    lines = ["| in phase | when | goes to | and does |", "|---|---|---|---|"]
    for (phase, event), (after, actions) in table.items():
        does = "; ".join(action.value for action in actions) or "-"
        lines.append(f"| {phase.value} | {event.value} | {after.value} | {does} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    polls = ", ".join(f"{phase.value}: {POLL[phase].name}" for phase in Phase)
    parts = [
        "# The life cycle of a room",
        "Made by `make docs` from the tables in `core/src/kv_core/protocol/lifecycle.py`.",
        "An event that a phase does not have changes nothing and is counted.",
        f"What `poll()` answers: {polls}.",
    ]
    for title, table in (("Prefill", PREFILL), ("Decode", DECODE)):
        parts += [f"## {title}", f"```mermaid\n{diagram(table, title)}```", _rows(table)]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Write or check the page."""
    if "--check" not in sys.argv:
        PAGE.write_text(page())
        return 0
    if PAGE.exists() and PAGE.read_text() == page():
        return 0
    sys.stderr.write(f"{PAGE.name} is not what the life cycle tables say: run `make docs`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
