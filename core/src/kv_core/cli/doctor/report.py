"""What the doctor found: for people a list by area, for programs one JSON object; and the exit status."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from kv_core.cli.doctor.live import Measurement
from kv_core.contract.records import CheckStatus, DoctorFinding

SCHEMA = 1
"""Raised when a reader of the JSON could misunderstand it; added keys do not raise it."""
MARKS = {
    CheckStatus.OK: "[green]ok     [/]",
    CheckStatus.WARNING: "[yellow]warning[/]",
    CheckStatus.PROBLEM: "[red]problem[/]",
}


@dataclass(frozen=True)
class Report:
    """One run. ``about``: the versions, the machine and what was asked."""

    about: dict[str, Any]
    findings: tuple[DoctorFinding, ...]
    measurements: tuple[Measurement, ...]

    @property
    def exit_status(self) -> int:
        """0 if serving would work, 1 if there is a problem."""
        return int(any(finding.status is CheckStatus.PROBLEM for finding in self.findings))

    def as_dict(self) -> dict[str, Any]:
        """The JSON object."""
        count = Counter(finding.status for finding in self.findings)
        return {
            "schema": SCHEMA,
            **self.about,
            "findings": [
                {
                    "id": finding.id, "status": finding.status.value, "message": finding.message,
                    "remedy": finding.remedy,
                }
                for finding in self.findings
            ],
            "measurements": [each.as_dict() for each in self.measurements],
            "summary": {status.value: count[status] for status in CheckStatus},
            "exit_status": self.exit_status,
        }  # fmt: skip

    def to_json(self) -> str:
        """The JSON object as text."""
        return json.dumps(self.as_dict(), indent=2)

    def print(self, console: Console) -> None:
        """For people: what was found, and what to do about what is not as it should be."""
        for finding in self.findings:
            console.print(
                f"{MARKS[finding.status]} [dim]{escape(finding.id)}[/] {escape(finding.message)}", soft_wrap=True
            )
            if finding.remedy:
                console.print(f"        [cyan]->[/] {escape(finding.remedy)}", soft_wrap=True)
        count = Counter(finding.status for finding in self.findings)
        verdict = "[green]serving would work[/]" if not self.exit_status else "[red]serving would not work[/]"
        console.print(
            f"{verdict}: {count[CheckStatus.PROBLEM]} problems, {count[CheckStatus.WARNING]} warnings. "
            "docs/doctor.md lists every finding",
            soft_wrap=True,
        )
