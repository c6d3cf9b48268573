"""The whole conformance suite as a stranger gets it: built wheels in a clean environment, run from an empty folder.

    python -m tests.long.conformance_wheels [--python 3.11]

Three runs on the embedded backend: as it is, with warnings as errors, and with pytest's plugin autoload off. Exit status 0:
each was `conformant`, and left nothing behind.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

from tests.packaging.environments import (
    INSTALL_LIMIT_S,
    ROOT,
    RUNNING,
    Clean,
    distributions,
    find_python,
    pip,
    succeed,
)

NEEDED = ("kv-core", "kv-fake", "kv-conformance")
BACKEND = "fake"
LIMIT_S = 900
RUNS: dict[str, tuple[list[str], dict[str, str]]] = {
    "as it is": ([], {}),
    "warnings as errors": (["--", "-W", "error", "--strict-markers", "--strict-config"], {"PYTHONWARNINGS": "error"}),
    "autoload off": ([], {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}),
}


def environment(version: str, home: Path) -> Clean:
    """A clean environment with nothing but the three wheels and what they need."""
    base = find_python(version)
    if base is None:
        raise SystemExit(f"no Python {version} here")
    wheels = []
    for name in NEEDED:
        succeed(
            sys.executable, "-m", "build", "--no-isolation", "--outdir", home / name, distributions()[name],
            cwd=ROOT, timeout=INSTALL_LIMIT_S,
        )  # fmt: skip
        wheels += list((home / name).glob("*.whl"))
    succeed(base, "-m", "venv", "--without-pip", home / "venv", cwd=home)
    clean = Clean(version, home / "venv/bin/python", home)
    pip(clean.python, "install", *wheels, cwd=home)
    return clean


def one_run(clean: Clean, name: str) -> tuple[str, bool]:
    """Run the suite in one of the three ways; a line of the report, and whether it was good."""
    arguments, extra = RUNS[name]
    begin = monotonic()
    report_folder = clean.home / f"report-{name.replace(' ', '-')}"
    ran = clean.run(
        clean.python, "-m", "kv_conformance", BACKEND, "--json", "--report", report_folder, *arguments,
        timeout=LIMIT_S, **extra,
    )  # fmt: skip
    report = json.loads(ran.stdout) if ran.stdout.startswith("{") else {}
    verdict = report.get("verdict", f"no report\n{ran.stdout}\n{ran.stderr}")
    line = f"{name:20} exit {ran.returncode}  {verdict}  {monotonic() - begin:.0f} s  {report.get('totals')}"
    if verdict != "conformant":
        line += "".join(f"\n    {reason}" for reason in report.get("reasons", ()))
    return line, ran.returncode == 0 and verdict == "conformant"


def main() -> int:
    """All three at once; print verdict, counts and time of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=RUNNING)
    version = parser.parse_args().python
    with tempfile.TemporaryDirectory(prefix="kv-conformance-wheels-") as home, ThreadPoolExecutor(len(RUNS)) as pool:
        clean = environment(version, Path(home))
        ran = list(pool.map(lambda name: one_run(clean, name), RUNS))
    print("\n".join(line for line, _ in ran))
    return 0 if all(good for _, good in ran) else 1


if __name__ == "__main__":
    sys.exit(main())
