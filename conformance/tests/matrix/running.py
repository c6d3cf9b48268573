"""One run of the suite against one mutant, as a stranger runs it, and what makes its report believable."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from conformance.tests.mutants import Mutant
from conformance.tests.mutants.site import environment, install
from kv_conformance.outcomes import Verdict
from kv_conformance.verdict import EXIT_STATUS

LIMIT_S = 1500.0
BELIEVED = (Verdict.CONFORMANT, Verdict.FAILED, Verdict.PARTIAL)


class RunError(Exception):
    """The run says nothing about the mutant."""


@dataclass(frozen=True)
class Ran:
    """What a run said: the outcome and its reason for each check that was run, by id."""

    name: str
    outcomes: Mapping[str, str]
    details: Mapping[str, str]
    seconds: float


def run(mutant: Mutant, *, gate: bool = False, only: Sequence[str] = (), seed: int = 0) -> Ran:
    """Run the suite against it in an empty folder. Raises ``RunError``."""
    begin = monotonic()
    with tempfile.TemporaryDirectory(prefix=f"kv-mutant-{mutant.name}-") as scratch:
        site, work = Path(scratch, "site"), Path(scratch, "work")
        work.mkdir()
        install(mutant, site)
        told = work / "report"
        arguments = [mutant.name, "--report", str(told), "--seed", str(seed), *(f"--only={one}" for one in only)]
        arguments += ["--gate"] if gate else []
        try:
            done = subprocess.run(
                [sys.executable, "-m", "kv_conformance", *arguments], cwd=work, env=environment(site), text=True,
                capture_output=True, timeout=LIMIT_S, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise RunError(f"{mutant.name}: no end after {LIMIT_S:.0f} s") from error
        report = _read(mutant, told / "report.json", arguments, done)
    checks = [entry for entry in report["checks"] if entry["outcome"] != "not_run"]
    return Ran(
        mutant.name,
        {entry["id"]: entry["outcome"] for entry in checks},
        {entry["id"]: entry["detail"] for entry in checks},
        monotonic() - begin,
    )


def _read(
    mutant: Mutant, path: Path, arguments: Sequence[str], done: subprocess.CompletedProcess[str]
) -> dict[str, Any]:
    """The report, if it is this very run's, and its verdict is what the exit status says."""
    words = f"exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    if not path.exists():
        raise RunError(f"{mutant.name}: no report: {words}")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if report["command"][3:] != list(arguments):
        raise RunError(f"{mutant.name}: the report is of another run: {report['command']}")
    results = path.parent / f"results-{report['run']}.jsonl"
    if not results.exists():
        raise RunError(f"{mutant.name}: there are no results of the report's run {report['run']}")
    session = json.loads(results.read_text(encoding="utf-8").splitlines()[0])
    if session["run"] != report["run"] or session["subject"]["backend"] != mutant.name:
        raise RunError(f"{mutant.name}: the results are another backend's: {session}")
    verdict = Verdict(report["verdict"])
    if verdict not in BELIEVED or done.returncode != EXIT_STATUS[verdict]:
        raise RunError(f"{mutant.name}: verdict {verdict.value} ({'; '.join(report['reasons'])}): {words}")
    return report
