"""The whole conformance suite on the plugins of this repository; `make conformance` runs this.

    python tools/conformance.py [--reports DIR] [--readme] [--gate] [--jobs N] [BACKEND ...]

Each runs in its plugin's folder, where its file of known failures lies. Exit status 0: each is `conformant`, or would be but
for known failures, or is `partial` because its engine can't run here. --readme: put the reports into the READMEs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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
    ran = subprocess.run(
        command, cwd=PLUGINS / f"kv_{backend}", env=environment, check=False, capture_output=True, text=True
    )
    seconds = monotonic() - begin
    print(f"--- {backend}\n{ran.stdout}{ran.stderr if ran.returncode in (2, 4) else ''}", flush=True)
    report = folder / "report.json"
    return (json.loads(report.read_text(encoding="utf-8")) if report.exists() else None), seconds


def is_good(report: dict[str, Any] | None, *, gate: bool) -> bool:
    """Whether this tool is content: conformant, or nothing but listed failures of the engine stands in the way. A backend on
    a stand-in, and a run of the gate alone, can only be partial.
    """
    if report is None:
        return False
    if report["verdict"] != "partial":
        return bool(report["verdict"] == "conformant")
    if report["stand_in"] or gate:
        return True
    open_ends = {"failed", "harness_error", "not_run", "stale", "untestable"}
    return report["claimed"] == report["proven"] and not any(one["outcome"] in open_ends for one in report["checks"])


def main() -> int:
    """Run all that were named, print a table, and say whether all is as expected."""
    parser = argparse.ArgumentParser(description="the conformance suite on the plugins of this repository")
    parser.add_argument("backends", nargs="*", default=[])
    parser.add_argument("--reports", type=Path, default=ROOT / "build/conformance")
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--gate", action="store_true")
    parser.add_argument("--jobs", type=int, help="backends at a time (2; with --gate, which mostly waits, all)")
    options = parser.parse_args()
    known = sorted(path.name.removeprefix("kv_") for path in PLUGINS.iterdir() if (path / "pyproject.toml").exists())
    unknown = set(options.backends) - set(known)
    if unknown:
        parser.error(f"no plugin {', '.join(sorted(unknown))} here; there are {', '.join(known)}")
    lines, good = [], True
    asked = options.backends or known
    more = ["--gate"] if options.gate else []
    with ThreadPoolExecutor(options.jobs or (len(asked) if options.gate else 2)) as pool:
        ran = list(pool.map(lambda backend: run(backend, options.reports.resolve(), more), asked))
    for backend, (report, seconds) in zip(asked, ran, strict=True):
        verdict = report["verdict"] if report else "no report"
        good = is_good(report, gate=options.gate) and good
        lines.append(f"{backend:12} {verdict:12} {seconds:7.1f} s")
        if report and options.readme:
            readme = PLUGINS / f"kv_{backend}" / "README.md"
            source = str(options.reports.resolve() / backend / "report.json")
            subprocess.run([sys.executable, "-m", "kv_conformance.readme", source, str(readme)], check=True)
    print("\n".join(["", "backend      verdict         time", *lines]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
