"""The whole conformance suite on the plugins of this repository, one after the other; `make conformance` runs this.

    python tools/conformance.py [--reports DIR] [--readme] [--gate] [BACKEND ...]

Each runs in its plugin's folder, where its file of known failures lies. Exit status 0: every verdict is the one expected,
which is `conformant`, and `partial` for a backend whose engine can't run here. --readme: put the reports into the READMEs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = ROOT / "plugins"
STAND_INS = {"mori": PLUGINS / "kv_mori/tests/stand_in"}
"""Put on the path of backends whose engine can't be had here, and which can reach `partial` at most."""


def run(backend: str, reports: Path, more: list[str]) -> tuple[dict[str, Any] | None, float]:
    """Run the suite on one backend: its report (None if there is none), and the seconds that it took."""
    folder = reports / backend
    (folder / "report.json").unlink(missing_ok=True)
    environment = dict(os.environ)
    if backend in STAND_INS:
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(STAND_INS[backend]), *filter(None, [environment.get("PYTHONPATH")])]
        )
    begin = monotonic()
    command = [sys.executable, "-m", "kv_conformance", backend, "--report", str(folder), *more]
    subprocess.run(command, cwd=PLUGINS / f"kv_{backend}", env=environment, check=False)
    seconds = monotonic() - begin
    report = folder / "report.json"
    return (json.loads(report.read_text(encoding="utf-8")) if report.exists() else None), seconds


def expected(backend: str, *, gate: bool) -> set[str]:
    """The verdicts with which this tool is content."""
    return {"partial"} if backend in STAND_INS or gate else {"conformant"}


def main() -> int:
    """Run all that were named, print a table, and say whether all is as expected."""
    parser = argparse.ArgumentParser(description="the conformance suite on the plugins of this repository")
    parser.add_argument("backends", nargs="*", default=[])
    parser.add_argument("--reports", type=Path, default=ROOT / "build/conformance")
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--gate", action="store_true")
    options = parser.parse_args()
    known = sorted(path.name.removeprefix("kv_") for path in PLUGINS.iterdir() if (path / "pyproject.toml").exists())
    unknown = set(options.backends) - set(known)
    if unknown:
        parser.error(f"no plugin {', '.join(sorted(unknown))} here; there are {', '.join(known)}")
    lines, good = [], True
    for backend in options.backends or known:
        report, seconds = run(backend, options.reports.resolve(), ["--gate"] if options.gate else [])
        verdict = report["verdict"] if report else "no report"
        good = good and verdict in expected(backend, gate=options.gate)
        lines.append(f"{backend:12} {verdict:12} {seconds:7.1f} s")
        if report and options.readme:
            readme = PLUGINS / f"kv_{backend}" / "README.md"
            source = str(options.reports.resolve() / backend / "report.json")
            subprocess.run([sys.executable, "-m", "kv_conformance.readme", source, str(readme)], check=True)
    print("\n".join(["", "backend      verdict         time", *lines]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
