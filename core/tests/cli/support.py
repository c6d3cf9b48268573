"""Runs the ``kv-core`` command as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 90
SMALL = ("--pages", "4", "--layers", "2", "--page-bytes", "4096")
"""A request of 32 KiB and a row."""
COMMAND = (sys.executable, "-m", "kv_core.cli")


@dataclass
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object on standard output."""
        return json.loads(self.out)

    def __str__(self) -> str:
        return f"exit status {self.status}\n{self.out}\n{self.err}"


def environment(site: Path | None = None, **extra: str) -> dict[str, str]:
    """The environment of a command: another folder on its path, warnings as errors in it and in its ranks."""
    path = [str(site)] if site else []
    path += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    values = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120", "PYTHONWARNINGS": "error", **extra}
    return {**values, "PYTHONPATH": os.pathsep.join(path)} if path else values


def kv_core(*arguments: str, site: Path | None = None, **extra: str) -> Ran:
    """Run a command to its end."""
    ran = subprocess.run(
        [*COMMAND, *arguments],
        env=environment(site, **extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def demo(*arguments: str, **extra: Any) -> Ran:
    """Run the demo on the embedded backend with small pages; later arguments win."""
    return kv_core("demo", "--backend", "fake", "--json", *SMALL, *arguments, **extra)


def faults(**rule: Any) -> tuple[str, str]:
    """The option that gives the embedded backend a fault script of one rule, on the side that writes."""
    return ("--option", "prefill.faults=" + json.dumps([rule]))
