"""What the long tests' command lines have in common: seeds, the repeating command, a table, and the exit status."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def parser(description: str) -> argparse.ArgumentParser:
    """With --seed and --json."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--seed", type=int, default=None, help="repeats a run (default: a new one, which is printed)")
    made.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return made


def chosen_seed(seed: int | None) -> int:
    """The given one, or a new one."""
    return secrets.randbelow(2**32) if seed is None else seed


def repeat(module: str, seed: int, *arguments: str) -> str:
    """The command that repeats a run."""
    return " ".join([Path(sys.executable).name, "-m", module, *arguments, "--seed", str(seed)])


def report(
    title: str, rows: Sequence[dict[str, Any]], violations: Sequence[str], *, command: str, as_json: bool
) -> int:
    """Print what was seen; the exit status: 1 if there is any violation."""
    if as_json:
        print(
            json.dumps(
                {"test": title, "rows": list(rows), "violations": list(violations), "command": command}, default=str
            )
        )
        return int(bool(violations))
    table = Table(title=title)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        table.add_column(name, justify="left" if name == columns[0] else "right")
    for row in rows:
        table.add_row(*(shown(row.get(name, "")) for name in columns))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for violation in violations:
        console.print(f"VIOLATION: {violation}", style="red", markup=False, highlight=False)
    console.print(f"{len(violations)} violations. To repeat: {command}", markup=False, highlight=False)
    return int(bool(violations))


def shown(value: Any) -> str:
    """A cell."""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(number)}" for name, number in value.items()) or "-"
    return str(value)
