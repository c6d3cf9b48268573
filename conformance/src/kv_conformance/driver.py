"""Runs the suite in processes of pytest's own until every check has an outcome, and makes the report.

A process of its own: the suite shall be imported by pytest, under the pytest configuration of whoever runs it, and a backend
may take its process with it. A check in which the process dies has failed; the others go on in the next process.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from kv_conformance import report_facts
from kv_conformance.catalog import SUITE, Check, all_checks, left_out
from kv_conformance.driver_process import End, Limits, Watch, run
from kv_conformance.known import DEFAULT_FILE, KnownFailure, KnownFailuresError, read_known_failures, refuse_unknown
from kv_conformance.markdown import markdown
from kv_conformance.outcomes import Outcome
from kv_conformance.report import Facts, build
from kv_conformance.requirements import RequirementSet, set_of
from kv_conformance.results import Ended, Reader, Results, WrongResults
from kv_core import list_backends

TAIL_BYTES = 8192
GOOD_ENDS = (0, 1)
"""Exit statuses of a pytest that came to its end: nothing failed, or something did. With any other one nothing is known."""


class BadArguments(ValueError):
    """What was asked for can't be done; the message says what to ask for instead."""


@dataclass(frozen=True)
class Order:
    """What is to be run. ``command``: what repeats it, for the report. ``only``: ids of checks and areas.

    extra: further arguments of pytest. suite: the package of checks; another one only in tests of this package.
    """

    backend: str
    command: Sequence[str] = ()
    report: Path | None = None
    gate: bool = False
    only: Sequence[str] = ()
    known_file: Path | None = None
    seed: int = 0
    extra: Sequence[str] = ()
    suite: str = SUITE
    limits: Limits = field(default_factory=Limits)


@dataclass
class _Run:
    """What one call of ``conduct`` works with."""

    order: Order
    checks: Sequence[Check]
    known_file: Path | None
    folder: Path
    scratch: Path
    id: str
    told: Callable[[str, Ended], None]
    results: Results = field(default_factory=Results)
    troubles: list[str] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.folder / "pytest.log"


def conduct(order: Order, told: Callable[[str, Ended], None] = lambda _check, _ended: None) -> dict[str, Any]:
    """Run the suite; the report, which is also written if a folder is given. ``told`` hears of each check that ends.

    Raises ``BadArguments``; ``ValueError`` or ``RequirementsError`` if the suite itself is broken.
    """
    checks = all_checks(order.suite)
    sets = set_of(order.suite)
    known_file, known = _arguments(order, checks)
    missed = {check.id: why for check in checks if (why := left_out(check, gate=order.gate, only=order.only))}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kv-conformance-", ignore_cleanup_errors=True) as scratch:
        folder = _folder(order.report, Path(scratch))
        this = _Run(order, checks, known_file, folder, Path(scratch), uuid.uuid4().hex, told)
        _run_all(this, {check.id for check in checks} - missed.keys())
        report = _report(this, sets, known, missed, time.monotonic() - began)
        if order.report:
            (folder / "report.json").write_text(
                json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    return report


def _arguments(order: Order, checks: Sequence[Check]) -> tuple[Path | None, dict[str, KnownFailure]]:
    """Refuse what has no meaning; the known failures."""
    installed = {one.name: one for one in list_backends()}
    if order.backend not in installed:
        raise BadArguments(
            f"no backend named {order.backend!r} is installed for {sys.executable}; installed are: {', '.join(installed) or 'none'}. "
            "Install the distribution that offers it"
        )
    if installed[order.backend].disabled:
        raise BadArguments(f"backend {order.backend!r} is disabled by KV_CORE_DISABLED_PLUGINS: remove it from there")
    ids = {check.id for check in checks}
    areas = {f"KV-{check.area}" for check in checks}
    for one in order.only:
        if one not in ids | areas:
            raise BadArguments(
                f"--only {one}: there is no such check or area. python -m kv_conformance --list shows all"
            )
    known_file = order.known_file or (Path(DEFAULT_FILE) if Path(DEFAULT_FILE).exists() else None)
    if known_file is None:
        return None, {}
    try:
        known = read_known_failures(known_file)
        refuse_unknown(known_file, known, ids)
    except KnownFailuresError as error:
        raise BadArguments(str(error)) from None
    return known_file, known


def _folder(wanted: Path | None, scratch: Path) -> Path:
    """Where results go, without those of an earlier run: whatever happens now, nobody shall take them for this one's."""
    if wanted is None:
        return scratch
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        for pattern in ("report.json", "report.md", "results-*.jsonl", "junit*.xml", "pytest.log"):
            for old in wanted.glob(pattern):
                old.unlink()
    except OSError as error:
        raise BadArguments(f"--report {wanted}: the folder can't be used: {error}") from None
    return wanted


def _run_all(this: _Run, wanted: Collection[str]) -> None:
    """Process after process, as long as each of them brings something."""
    number = 0
    missing = list(wanted)
    path = this.folder / f"results-{this.id}.jsonl"
    path.unlink(missing_ok=True)
    reader = Reader(path, this.id)
    while missing:
        number += 1
        before = len(this.results.ended)
        command = pytest_command(this, path, number, missing)
        watch = Watch(reader, this.results, this.checks, this.order.limits, this.told)
        this.results.finished = False
        try:
            end = run(command, {**os.environ, "PYTHONFAULTHANDLER": "1"}, this.log, watch)
        except WrongResults as error:
            this.results = Results()
            this.troubles.append(str(error))
            return
        _settle(this, end, progress=len(this.results.ended) > before)
        missing = [check for check in missing if check not in this.results.ended]
        if len(this.results.ended) == before:
            break


def _settle(this: _Run, end: End, *, progress: bool) -> None:
    """Blame the checks in which the process ended, or say what else went wrong. progress: some check has ended in it."""
    results = this.results
    left = list(results.open.values())
    results.open.clear()
    if end.overdue:
        for check in end.overdue:
            _died(
                this, check, "the process hung in this check, and was killed: neither its limit nor its grace ended it"
            )
    elif left and results.finished:
        # Somebody told pytest to stop: this check, or (with pytest-xdist) another one. The next process shows which.
        for check in () if progress else left:
            _died(this, check, f"pytest was told to stop ({end.how}) in this check")
    elif left:
        for check in left:
            _died(this, check, f"the process died ({end.how}) in this check")
    elif end.status in GOOD_ENDS and results.finished:
        return
    else:
        when = "after a check" if results.ended else "before the first check"
        this.troubles.append(f"pytest ended by itself ({end.how}) {when}: {_last_words(this.log)}")


def _died(this: _Run, check: str, detail: str) -> None:
    this.results.ended[check] = Ended(Outcome.FAILED, detail, _tail(this.log))
    this.told(check, this.results.ended[check])


def pytest_command(this: _Run, results: Path, number: int, missing: Sequence[str]) -> list[str]:
    """The command of one process. Each option is one argument, so that pytest does not look for its root in their values."""
    order = this.order
    only = order.only if number == 1 else missing
    command = [
        sys.executable, "-m", "pytest", "-p", "kv_conformance", "--pyargs", order.suite,
        f"--kv-backend={order.backend}", f"--kv-seed={order.seed}", f"--kv-results={results}", f"--kv-run-id={this.id}",
        *(f"--kv-only={one}" for one in only),
    ]  # fmt: skip
    if order.gate:
        command.append("--kv-gate")
    if this.known_file:
        command.append(f"--kv-known={this.known_file.resolve()}")
    if order.suite != SUITE:
        command.append(f"--kv-suite={order.suite}")
    if order.report:
        name = "junit.xml" if number == 1 else f"junit-{number}.xml"
        command += [f"--junit-xml={this.folder.resolve() / name}", "-o", "junit_family=xunit2"]
    # Whoever runs this may have a pytest configuration for tests of another kind. What of it would leave out checks, fail
    # them for a warning, or ask for fixtures that are not there, does not hold for the
    # suite. A folder of its own for pytest's cache, and not `-p no:cacheprovider`: that makes `cache_dir` and `--ff` errors
    # where they are configured.
    return [
        *command, "-o", f"cache_dir={this.scratch / 'cache'}", "-o", "python_files=test_*.py", "-o", "python_functions=test_",
        "-o", "norecursedirs=", "-o", "usefixtures=", "-W", "default", "-k", "", "-m", "", "--maxfail=0",
        *order.extra,
    ]  # fmt: skip


def _report(
    this: _Run, sets: RequirementSet, known: Mapping[str, KnownFailure], missed: Mapping[str, str], wall_s: float
) -> dict[str, Any]:
    facts = Facts(
        tested=report_facts.tested(this.order.backend),
        place=report_facts.place(),
        command=list(this.order.command),
        run=this.id,
        time_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        wall_s=wall_s,
        seed=this.order.seed,
        left_out=missed,
        troubles=this.troubles,
    )
    return build(this.checks, sets, this.results, known, facts)


def _tail(log: Path) -> str:
    return log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    # pytest says what is wrong with its arguments and its configuration in such lines, and goes on about its usage.
    told = [line for line in lines if "error:" in line.lower()] or lines
    return " / ".join(told[-3:]) or "it said nothing"
