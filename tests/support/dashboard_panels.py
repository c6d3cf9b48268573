"""The panels of the Grafana dashboard, and what a real Prometheus answers to their queries."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from core.tests.observe.prometheus_server import Server, plain
from core.tests.observe.test_monitoring import DASHBOARD

FALLBACK = {"role": "none"}
"""Labels of what a panel shows while there is nothing to show; no data that anybody could look at."""
FRESH_S = 1.5
"""A table is of now: of what has a sample that is not older."""


@dataclass(frozen=True)
class Line:
    """One series: ``times`` in seconds since the epoch, ``values`` with nan where there is none."""

    name: str
    labels: dict[str, str]
    times: list[float]
    values: list[float]

    @property
    def last(self) -> float:
        """The last number."""
        return next((value for value in reversed(self.values) if not math.isnan(value)), math.nan)


@dataclass
class Panel:
    """One panel with its data. ``missing``: queries of it that nothing was found for."""

    title: str
    kind: str
    place: dict[str, int]
    unit: str
    description: str
    red_from: float | None
    top: float | None
    """Up to where the scale goes at least."""
    stacked: bool
    lines: list[Line] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def moving(self) -> bool:
        """Whether anything but 0 was seen."""
        return any(value and not math.isnan(value) for line in self.lines for value in line.values)


def read_panels(server: Server, start: float, end: float, step_s: float, rate_interval: str) -> Iterator[Panel]:
    """Every panel, rows included, with the answers to all of its queries."""
    whole = f"{max(int(end - start), 1)}s"
    for told in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        defaults = told.get("fieldConfig", {}).get("defaults", {})
        custom = defaults.get("custom", {})
        steps = defaults.get("thresholds", {}).get("steps", [])
        panel = Panel(
            told["title"], told["type"], told["gridPos"], _unit(told, defaults), told.get("description", ""),
            next((step["value"] for step in steps if step["color"] == "red"), None), custom.get("axisSoftMax"),
            custom.get("stacking", {}).get("mode") == "normal",
        )  # fmt: skip
        for target in told.get("targets", []):
            query = plain(target["expr"], rate_interval, whole)
            found = [_line(one, target.get("legendFormat", "")) for one in server.series(query, start, end, step_s)]
            # nan is what a quantile of nothing is: a query that has only that has nothing to show.
            found = [line for line in found if not math.isnan(line.last)]
            panel.lines += found
            if all(line.labels == FALLBACK for line in found):
                panel.missing.append(target["expr"])
        if panel.kind == "table":
            now = max(line.times[-1] for line in panel.lines)
            panel.lines = [line for line in panel.lines if line.times[-1] >= now - FRESH_S]
        yield panel


def _unit(told: dict[str, Any], defaults: dict[str, Any]) -> str:
    unit: str = told.get("options", {}).get("yAxis", {}).get("unit") or defaults.get("unit", "none")
    return unit


def _line(series: dict[str, Any], legend: str) -> Line:
    labels = {name: value for name, value in series["metric"].items() if name != "__name__"}
    name = re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)
    return Line(
        name.strip(), labels, [at for at, _ in series["values"]], [float(value) for _, value in series["values"]]
    )
