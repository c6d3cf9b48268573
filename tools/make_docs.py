"""Write the pages of docs/ that are made from the code; with --check, fail if one is not what the code says.

lifecycle.md             from the life cycle tables
conformance-checks.md    from the checks of the conformance suite
"""

from __future__ import annotations

import sys
from pathlib import Path

from kv_conformance.catalog import all_checks
from kv_conformance.markdown import catalogue
from kv_core.protocol.lifecycle import DECODE, POLL, PREFILL, Phase, Table, diagram

DOCS = Path(__file__).parent.parent / "docs"


def _rows(table: Table) -> str:
    lines = ["| in phase | when | goes to | and does |", "|---|---|---|---|"]
    for (phase, event), (after, actions) in table.items():
        does = "; ".join(action.value for action in actions) or "-"
        lines.append(f"| {phase.value} | {event.value} | {after.value} | {does} |")
    return "\n".join(lines)


def lifecycle() -> str:
    """The whole page of the life cycle."""
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


def conformance_checks() -> str:
    """The whole page of the conformance suite's checks."""
    checks = all_checks()
    return (
        "# The checks of the conformance suite\n\n"
        "Made by `make docs` from the suite. [writing-a-backend.md](writing-a-backend.md) says how to run it, and what the outcomes mean.\n"
        f"{len(checks)} checks, {sum(check.gate for check in checks)} of them in the short run (`--gate`).\n\n"
        + catalogue(checks)
    )


PAGES = {"lifecycle.md": lifecycle, "conformance-checks.md": conformance_checks}


def main() -> int:
    """Write or check the pages."""
    stale = []
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        sys.stderr.write(f"{', '.join(stale)} in docs/ is not what the code says: run `make docs`\n")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
