"""What a run came to: a table for people, one JSON object for programs, and the exit status."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kv_core.cli.demo.router import Outcome
from kv_core.cli.demo.settings import DemoSettings
from kv_core.contract.records import BackendInfo

GIGA = 1e9
MILLI = 1e3


@dataclass(frozen=True)
class Report:
    """One run's result. ``failures`` counts rooms that failed, also those whose request succeeded at another try.
    ``trace``: the file of the trace, or empty.
    """

    settings: DemoSettings
    backend: BackendInfo
    seed: int
    outcome: Outcome
    trace: str = ""

    @property
    def exit_status(self) -> int:
        """0 if every request succeeded with every byte right and, unless a rank was killed, no room failed; else 1."""
        outcome = self.outcome
        right = (
            outcome.totals.succeeded == self.settings.requests
            and not outcome.totals.wrong_bytes
            and not outcome.stray_bytes
            and outcome.totals.bytes_sent == outcome.totals.bytes_verified
        )
        if outcome.kill is not None:
            return 0 if right and outcome.kill.passed else 1
        return 0 if right and not self.failures else 1

    @property
    def failures(self) -> int:
        """Rooms that failed."""
        return self.outcome.totals.failed_attempts.total()

    def as_dict(self) -> dict[str, Any]:
        """The JSON object. Sizes in bytes, durations in seconds unless the name says ``_ms``."""
        totals, outcome = self.outcome.totals, self.outcome
        return {
            "backend": self.backend.name,
            "distribution": self.backend.distribution,
            "version": self.backend.version,
            "requests": self.settings.requests,
            "succeeded": totals.succeeded,
            "failures": self.failures,
            "failures_by_reason": dict(totals.failed_attempts),
            "failure_examples": dict(totals.examples),
            "bytes_sent": totals.bytes_sent,
            "bytes_verified": totals.bytes_verified,
            "wrong_bytes": totals.wrong_bytes,
            "stray_bytes": outcome.stray_bytes,
            "goodput_gb_s": totals.bytes_verified / outcome.seconds / GIGA,
            "latency_ms": percentiles(totals.latencies_s),
            "seconds": outcome.seconds,
            "transport": self.transport,
            "seed": self.seed,
            "trace": self.trace or None,
            "settings": self.settings.as_dict(),
            "restarts": outcome.restarts,
            "kill": None if outcome.kill is None else {**outcome.kill.as_dict(), **self._quarantine()},
            "exit_status": self.exit_status,
        }

    @property
    def transport(self) -> str:
        """The fabric in use as the ranks tell, or what the backend says of itself."""
        told = {end.transport for end in self.outcome.stopped.values() if end.transport}
        return ", ".join(sorted(told)) or self.backend.description

    def _quarantine(self) -> dict[str, Any]:
        ends = self.outcome.stopped.values()
        return {
            "pages_quarantined": sum(end.pages_quarantined for end in ends),
            "longest_quarantine_s": max((end.longest_quarantine_s for end in ends), default=0.0),
        }

    def as_json(self) -> str:
        """One line."""
        return json.dumps(self.as_dict()) + "\n"

    def print(self, console: Console) -> None:
        """The table, and a sentence for each reason to fail."""
        values, totals = self.as_dict(), self.outcome.totals
        table = Table(title=f"{values['backend']} ({values['distribution']} {values['version']})", show_header=False)
        table.add_row("requests", f"{values['succeeded']} of {values['requests']} succeeded")
        table.add_row("bytes verified", f"{values['bytes_verified']:,} of {values['bytes_sent']:,} sent")
        table.add_row("wrong bytes", _number(values["wrong_bytes"], "every byte was compared"))
        table.add_row("stray bytes", _number(values["stray_bytes"], "pages of no room stayed untouched"))
        table.add_row("goodput", f"{values['goodput_gb_s']:.2f} GB/s (filling and comparing pages included)")
        latency = values["latency_ms"]
        if latency["p50"] is not None:
            shown = "   ".join(f"{name} {value:.1f}" for name, value in latency.items())
            table.add_row("latency, ms", shown)
        table.add_row("time", f"{values['seconds']:.2f} s")
        table.add_row("transport", escape(values["transport"]))
        table.add_row("failures", _number(self.failures, ""))
        for reason, count in totals.failed_attempts.items():
            table.add_row("", f"[red]{count}[/] x {reason}")
        if values["kill"]:
            self._add_kill(table, values["kill"])
        if self.trace:
            table.add_row("trace", f"{escape(self.trace)} (open it at https://ui.perfetto.dev)")
        table.add_row("seed", str(self.seed))
        console.print(table)
        for reason, message in totals.examples.items():
            if message:
                console.print(f"{reason}: {escape(message)}", soft_wrap=True)
        verdict = "[green]every byte was right[/]" if self.exit_status == 0 else "[red]not every request went well[/]"
        console.print(verdict)

    def _add_kill(self, table: Table, kill: dict[str, Any]) -> None:
        if not kill["pid"]:
            table.add_row("killed", "nobody: the run was over before that, take more --requests")
            return
        table.add_row("killed", f"{kill['role']} (pid {kill['pid']}) after {kill['after_requests']} requests")
        detect = kill["max_detect_s"]
        noticed = "" if detect is None else f", the last one after {detect:.2f} s"
        table.add_row("", f"{kill['affected_rooms']} rooms in flight failed{noticed}; their requests were tried again")
        if kill["restart_s"] is not None:
            table.add_row("", f"back after {kill['restart_s']:.2f} s, the survivor kept its pid")
        table.add_row(
            "quarantine",
            f"{kill['pages_quarantined']} pages at the end, the longest took {kill['longest_quarantine_s']:.2f} s",
        )


def percentiles(latencies_s: list[float]) -> dict[str, float | None]:
    """p50, p90, p99 and max in ms; None without any."""
    names = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    if not latencies_s:
        return dict.fromkeys(names)
    values = np.percentile(latencies_s, list(names.values())) * MILLI
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _number(count: int, if_none: str) -> str:
    return f"[red]{count:,}[/]" if count else "0" + (f" ({if_none})" if if_none else "")
