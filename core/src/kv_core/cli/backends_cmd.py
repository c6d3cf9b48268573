"""``kv-core backends``: what is installed, and of what is broken the real error and what to do about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kv_core.registry import PluginReport, PluginStatus, describe_backends

COLOURS = {PluginStatus.OK: "green", PluginStatus.BROKEN: "red", PluginStatus.DISABLED: "yellow"}


def run(*, as_json: bool) -> None:
    """Try every installed backend and tell how it went. A broken backend is news, not an error of this command."""
    reports = describe_backends()
    if as_json:
        document = {"backends": [report.as_dict() for report in reports]}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    console = Console()
    if not reports:
        console.print("No backend is installed. By custom they are called kv-NAME: pip install kv-NAME")
        return
    console.print(table_of(reports))
    for report in reports:
        if report.status is PluginStatus.BROKEN:
            console.print(trouble_of(report), soft_wrap=True)


def table_of(reports: Sequence[PluginReport]) -> Table:
    """One line per backend."""
    table = Table("backend", "distribution", "version", "status", "API", "capabilities", title="Installed backends")
    for report in reports:
        colour = COLOURS[report.status]
        table.add_row(
            escape(report.name), escape(", ".join(report.distributions)), escape(report.version),
            f"[{colour}]{report.status.value}[/]", report.api, escape(", ".join(report.capabilities)),
        )  # fmt: skip
    return table


def trouble_of(report: PluginReport) -> str:
    """What is wrong with a broken backend, as rich markup."""
    lines = [f"[red]{escape(report.name)}[/]: {escape(report.error_type)}: {escape(report.error)}"]
    if report.hint:
        lines.append(f"  {escape(report.hint)}")
    return "\n".join(lines)
