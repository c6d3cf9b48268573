"""What the plugin does with the suite's checks: picks them, runs them within their limits, and says what became of each.

One object for each process that collects or runs checks (with pytest-xdist: in each worker). What it finds out travels on
the last report of a check, as an attribute that pytest-xdist carries to the process which writes the results.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from kv_conformance.catalog import Check, check_of, left_out
from kv_conformance.known import KnownFailure
from kv_conformance.outcomes import Outcome
from kv_conformance.plugin_limit import time_limit
from kv_conformance.plugin_outcome import Phase, Result, Settled, beforehand, known_failure, of_phase, worst
from kv_conformance.plugin_subject import Subject

LONGREPR_BYTES = 8192
RESULT = "kv_result"
"""Attribute of a check's last report: a dictionary, as the results file has it."""
_SHOWN_AS = {
    Outcome.PASSED: "passed",
    Outcome.REFUSED: "passed",
    Outcome.UNTESTABLE: "skipped",
    Outcome.KNOWN_FAILURE: "skipped",
}
"""Where pytest counts an outcome; all others count as failed."""


@dataclass
class Course:
    """How one check is going: the result of each phase so far, and what its environment noticed."""

    check: Check
    results: list[Result] = field(default_factory=list)
    error: BaseException | None = None
    longrepr: str = ""
    duration_s: float = 0.0
    env: Any = None


COURSE = pytest.StashKey[Course]()


class Conduct:
    """The hooks. ``folders``: where the suite's modules lie. ``gate``, ``only``: which checks are to be run."""

    def __init__(
        self, subject: Subject, folders: Sequence[Path], known: Mapping[str, KnownFailure], *, gate: bool,
        only: Sequence[str],
    ) -> None:  # fmt: skip
        self.subject = subject
        self._folders = {folder.resolve() for folder in folders}
        self._known = known
        self._gate = gate
        self._only = only

    # -- collection ------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Take the suite's tests for checks; deselect what is not to be run. Other tests stay as they are."""
        checks = {item: self._check(item) for item in items if item.path.parent.resolve() in self._folders}
        _refuse_twins(checks)
        unwanted = [item for item, check in checks.items() if left_out(check, gate=self._gate, only=self._only)]
        if unwanted:
            config.hook.pytest_deselected(items=unwanted)
            items[:] = [item for item in items if item not in unwanted]
        foreign_limit = any(line.startswith("timeout(") for line in config.getini("markers"))
        for item, check in checks.items():
            item.stash[COURSE] = Course(check)
            item.user_properties += [
                ("kv_check", check.id), ("kv_level", check.level.value),
                ("kv_requires", check.requires.value if check.requires else ""), ("kv_sentence", check.sentence),
            ]  # fmt: skip
            if foreign_limit:
                # pytest-timeout, set up by whoever runs the suite: a check has a limit of its own.
                item.add_marker(pytest.mark.timeout(0), append=False)

    def _check(self, item: pytest.Item) -> Check:
        check = check_of(getattr(item, "function", None))
        if check is None:
            raise pytest.UsageError(
                f"{item.nodeid} is in the conformance suite and is no check: give it an id with @check"
            )
        return check

    # -- running ---------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Before anything is set up: may this check be run at all?"""
        course = item.stash.get(COURSE, None)
        if course is not None:
            # Whoever repeats tests starts over here.
            item.stash[COURSE] = Course(course.check)
            result = beforehand(course.check, self.subject)
            if result is not None:
                raise Settled(result)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """The check itself, within its limit."""
        course = item.stash.get(COURSE, None)
        if course is None:
            return (yield)
        with time_limit(course.check.limit_s * self.subject.slowness):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """What became of this phase; at the last one, of the check. Last of all plugins, so that no other one changes it."""
        report = yield
        course = item.stash.get(COURSE, None)
        if course is None:
            return report
        phase = Phase(call.when)
        error = call.excinfo.value if call.excinfo else None
        reached = getattr(course.env, "reached_points", ())
        result = of_phase(phase, error, course.check, self.subject, reached=reached, where=self._where(call))
        if phase is Phase.SETUP and (item.get_closest_marker("xfail") or item.get_closest_marker("skipif")):
            result = Result(Outcome.HARNESS_ERROR, "skip is not an outcome: the check is marked skipif or xfail")
        course.duration_s += report.duration
        course.results.append(result)
        if result.outcome is Outcome.FAILED:
            course.error = course.error or error
        if isinstance(error, Settled):
            report.longrepr = str(error)
        elif _SHOWN_AS.get(result.outcome) != "passed":
            course.longrepr = course.longrepr or _cut(report.longreprtext)
        if phase is Phase.TEARDOWN:
            result = self._conclude(course, report)
        elif result.outcome is Outcome.FAILED:
            result = self._listed(course.check, result)
        _show(item, report, result)
        return report

    def _conclude(self, course: Course, report: pytest.TestReport) -> Result:
        """The check's result, put on its last report. What this report shall show: what is not shown by an earlier one."""
        final = self._listed(course.check, worst(course.results))
        record = {
            "check": course.check.id,
            "outcome": final.outcome.value,
            "detail": final.detail,
            "longrepr": course.longrepr,
            "duration_s": round(course.duration_s, 3),
            "fabrics": sorted(str(one) for one in getattr(course.env, "fabrics", ())),
            "notes": [str(one) for one in getattr(course.env, "notes", ())],
        }
        setattr(report, RESULT, record)
        # An error holds the frames it came through, and all that is in them: not until the end of the run.
        course.error = course.env = None
        report.user_properties += [("kv_outcome", final.outcome.value), ("kv_detail", final.detail)]
        if final.outcome is Outcome.STALE:
            return final
        own = course.results[-1]
        return self._listed(course.check, own) if own.outcome is Outcome.FAILED else own

    def _listed(self, check: Check, result: Result) -> Result:
        entry = self._known.get(check.id)
        return known_failure(result, entry.reason, entry.link) if entry else result

    def _where(self, call: pytest.CallInfo[None]) -> str:
        """The last line of the suite that the error came through, else the last line of all."""
        if call.excinfo is None or not call.excinfo.traceback:
            return ""
        entries = list(call.excinfo.traceback)
        own = [
            entry for entry in entries if isinstance(entry.path, Path) and entry.path.parent.resolve() in self._folders
        ]
        entry = (own or entries)[-1]
        return f"{Path(entry.path).name}:{entry.lineno + 1}"

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """A refusal is a pass, also where it came so early that pytest counts the test as skipped."""
        shown = getattr(report, "kv_shown", "")
        return ("passed", ".", "REFUSED") if shown == Outcome.REFUSED.value else None


def _refuse_twins(checks: Mapping[pytest.Item, Check]) -> None:
    seen: dict[str, str] = {}
    for item, check in checks.items():
        if check.id in seen:
            raise pytest.UsageError(f"{check.id} is given twice: {seen[check.id]} and {item.nodeid}")
        seen[check.id] = item.nodeid


def _show(item: pytest.Item, report: pytest.TestReport, result: Result) -> None:
    """Let pytest's own display and exit status follow the outcome."""
    if result.outcome is Outcome.PASSED:
        return
    vars(report).pop("wasxfail", None)
    report.kv_shown = result.outcome.value  # type: ignore[attr-defined]
    text = f"{result.outcome.value.replace('_', ' ')}: {result.detail}"
    failed_here = report.failed
    report.outcome = cast(Any, _SHOWN_AS.get(result.outcome, "failed"))
    if report.outcome == "skipped" or (result.outcome is Outcome.REFUSED and report.when != "call"):
        # Without a call there is nothing to pass: pytest goes on with the call after a setup that passed.
        report.outcome = "skipped"
        path, line, _ = item.location
        report.longrepr = (path, (line or 0) + 1, text)
        if result.outcome is Outcome.KNOWN_FAILURE:
            report.wasxfail = result.detail
    elif report.outcome == "passed":
        report.longrepr = None
    elif not failed_here or not report.longrepr:
        report.longrepr = text
    else:
        report.sections.append(("kv-conformance", text))


def _cut(text: str) -> str:
    """The end of a long text: there stands what was raised."""
    data = text.encode()
    if len(data) <= LONGREPR_BYTES:
        return text
    return "... (the beginning is cut)\n" + data[-LONGREPR_BYTES:].decode(errors="ignore")
