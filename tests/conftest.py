"""What a run of the tests says at its end."""

from __future__ import annotations

import pytest

from tests.packaging.environments import PYTHONS, RUNNING, find_python


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say on which Pythons the wheels were tested, and on which not: a skip is easily overlooked."""
    ran = any("test_clean_environments" in report.nodeid for report in terminalreporter.stats.get("passed", []))
    if ran:
        found = [version for version in PYTHONS if find_python(version)]
        missing = [version for version in PYTHONS if version not in found]
        terminalreporter.write_line(
            f"wheels tested on {len(found)} of {len(PYTHONS)} Pythons: {', '.join(found)} (running: {RUNNING})"
            + (f"; missing: {', '.join(missing)}" if missing else "")
        )
