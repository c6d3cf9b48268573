"""Writes the results file. One for a run: in pytest's own process, or in pytest-xdist's controller, never in a worker."""

from __future__ import annotations

import pytest

from kv_conformance.plugin_conduct import RESULT
from kv_conformance.plugin_subject import Subject
from kv_conformance.results import Writer


class Recorder:
    """The hooks that tell how the run goes."""

    def __init__(self, writer: Writer, subject: Subject) -> None:
        self._writer = writer
        self._subject = subject

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """What is tested, before anything is."""
        self._writer.write("session", subject=self._subject.as_dict())

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Written before the check runs: if the process dies in it, this is what remains."""
        self._writer.write("begun", node=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A check's last report has its result. A report of pytest-xdist itself: the worker died."""
        record = getattr(report, RESULT, None)
        if record is not None:
            self._writer.write("ended", node=report.nodeid, **record)
        elif report.when not in ("setup", "call", "teardown"):
            self._writer.write("died", node=report.nodeid, detail=report.longreprtext)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """The run came to its end."""
        self._writer.write("finished", status=int(exitstatus))

    def pytest_unconfigure(self) -> None:
        """Nothing follows."""
        self._writer.close()
