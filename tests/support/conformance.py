"""The quick part of the conformance suite on one backend, as its author would run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kv_core import BackendLoadError, load_backend

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 400


def need_engine(backend: str) -> None:
    """Skip where the backend's engine is not installed."""
    try:
        load_backend(backend)
    except BackendLoadError as missing:
        pytest.skip(f"the engine of {backend} can't be loaded here: {missing}")


def gate_report(backend: str, folder: Path, *, path: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Run `python -m kv_conformance BACKEND --gate` in the plugin's folder; its report. ``path``: put before PYTHONPATH."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    before = [str(one) for one in path] + [kept.pop("PYTHONPATH", "")]
    command = [
        sys.executable,
        "-m",
        "kv_conformance",
        backend,
        "--gate",
        "--accept",
        "partial",
        "--report",
        str(folder),
    ]
    ran = subprocess.run(
        command, cwd=ROOT / f"plugins/kv_{backend}", env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, before))},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    again = f"cd plugins/kv_{backend} && {' '.join(command[:5])}"
    assert ran.returncode == 0, f"exit {ran.returncode}; again: {again}\n{ran.stdout[-12000:]}\n{ran.stderr[-4000:]}"
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def outcomes(report: dict[str, Any]) -> dict[str, set[str]]:
    """Ids of the checks by outcome."""
    found: dict[str, set[str]] = {}
    for one in report["checks"]:
        found.setdefault(one["outcome"], set()).add(one["id"])
    return found
