"""Write the pages of docs/ that are made from the code; with --check, fail if one is not what the code says.

lifecycle.md             from the life cycle tables
conformance-checks.md    from the checks of the conformance suite
doctor.md                from the kinds of findings of `kv-core doctor` and of the plugins' own checks
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from kv_conformance.catalog import all_checks
from kv_conformance.markdown import catalogue
from kv_core.cli.doctor.catalog import all_kinds, as_markdown, kinds_of
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


DOCTOR = """# kv-core doctor

Made by `make docs`; the tables come from the code (`core/src/kv_core/cli/doctor` and each plugin's `doctor` module).

    kv-core doctor                                    # this machine, every installed backend
    kv-core doctor --backend acme --json              # this one shall work; one JSON object for programs
    kv-core doctor --backend acme --serve 0.0.0.0:8998 --advertised-host 10.0.0.1      # on one machine: wait for a visitor
    kv-core doctor --backend acme --peer 10.0.0.1:8998                                 # on another one: be the visitor

It looks at what is installed, at devices, at limits and at addresses; lets each backend register memory and move 64 MiB
from one process of this machine to another, comparing every byte; and says how fast that was and *over which fabric*.
`--static` leaves the moving out. Whatever could crash (loading an engine, a driver, a transfer) happens in processes of its own.

**Exit status**: 0 serving would work (there may be warnings), 1 a problem was found, 2 bad arguments. With `--backend NAME`
what is wrong with that backend is a problem; without it, a broken backend is a warning as long as another one works.

**With `--peer`** it asks the bootstrap server of a live prefill instance for its health and its ranks, tries to reach each of
them, compares backend and versions, and shakes hands as a decode rank would. An engine's instance is asked for no pages; it
refuses the doctor's own layout, and says what differs. `--layout FILE` compares this side's real layout instead: what
`KVArgs` would say, without addresses and numbers of items:

```json
{"page_size": 16, "dtype": "bfloat16", "kv_layout": "NHD", "model": "m", "revision": "r", "num_kv_heads": 8, "head_dim": 128,
 "kv": [{"item_len": 32768, "layer": 0, "part": "k"}, {"item_len": 32768, "layer": 0, "part": "v"}],
 "aux": [{"item_len": 256}], "states": {}, "extra": {}, "topology": {"tp_rank": 0, "tp_size": 1}}
```

If a doctor serves there (`--serve`), 64 MiB come from it, twice, and every byte is compared.

**`--require-transport WORD`** (again: one of them) hands `TransferConfig.require_transport` to the managers that it makes, so
that it fails where serving would. In a deployment that setting makes a silent fall-back to TCP an error: `create_manager`
raises `InvalidConfig` where the backend knows at once that it can't use such a fabric, and otherwise each peer that is
reached over another one is refused before a byte moves (stage `handshake`, code `incompatible`, not retryable).

**JSON**: `schema` (1; raised when a reader could misunderstand it), `kv_core`, `python`, `system`, `machine`, `backend`, `peer`,
`require_transport`, `findings` (each with `id`, `status`, `message`, `remedy`), `measurements` (each with `backend`, `to`,
`transport`, `bytes`, `wire_seconds` or null, `wall_seconds`, `gb_s` in 10^9 bytes a second), `summary` (findings by status),
`exit_status`.

Ids are stable. Words in braces are filled in. What is a problem here may be reported as a warning where nobody asked for what
it is about, and `limits.*` warnings are problems where they are certain to hurt. A plugin's own checks (`kv_doctor_checks`) have ids
that begin with its name; if its hook fails, that is the finding `NAME.checks`."""


def doctor() -> str:
    """The whole page of the doctor's findings."""
    parts = [DOCTOR]
    for area, kinds in all_kinds().items():
        parts += [f"## {area}", as_markdown(kinds)]
    for folder in sorted((DOCS.parent / "plugins").glob("*/src/*/doctor.py")):
        module = folder.parent.name
        parts += [f"## {module}", as_markdown(kinds_of(importlib.import_module(f"{module}.doctor")))]
    return "\n\n".join(parts) + "\n"


PAGES = {"lifecycle.md": lifecycle, "conformance-checks.md": conformance_checks, "doctor.md": doctor}


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
