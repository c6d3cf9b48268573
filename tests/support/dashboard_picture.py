"""Draws the panels of the dashboard into one picture, as Grafana lays them out. Needs matplotlib (dependency group ``dashboard``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from tests.support.dashboard_panels import Line, Panel

COLUMNS = 24
WIDTH_IN, ROW_IN, HEADER_IN = 17.0, 0.265, 0.55
DPI = 90
COLOURS = 256
GAP = (0.35, 0.55)
"""Of a panel's place that stays empty, in grid units: to the left and right, above and below."""
MAX_NAMES, MAX_NAME_ROWS = 6, 3
PALETTE = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
    "#003f5c", "#ffa600", "#58508d", "#bc5090", "#00876c", "#444444",
)  # fmt: skip
SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
IEC = ((2.0**40, "Ti"), (2.0**30, "Gi"), (2.0**20, "Mi"), (2.0**10, "Ki"))


def shown(value: float, unit: str) -> str:
    """A number as Grafana shows it in this unit."""
    if math.isnan(value):
        return "no data"
    if unit == "s":
        for factor, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
            if abs(value) >= factor * 0.9995 or factor == 1e-6:
                return f"{value / factor:.3g} {name}" if value else "0 s"
    if unit == "percentunit":
        return f"{value:.1%}"
    suffix = {"Bps": "B/s", "bytes": "B", "reqps": "/s", "cps": "/s"}.get(unit, "")
    for step, letter in IEC if unit == "bytes" else SI:
        if abs(value) >= step:
            return f"{value / step:.3g} {letter}{suffix}"
    return f"{value:.3g} {suffix}".strip()


def draw(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Write the picture: a PNG with few colours, so that it stays small."""
    rows = max(panel.place["y"] + panel.place["h"] for panel in panels)
    height = rows * ROW_IN + HEADER_IN
    with mpl.rc_context({"font.size": 7.5, "axes.linewidth": 0.5, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, facecolor="#f4f5f5")
        figure.text(0.008, 1 - HEADER_IN / 2 / height, title, fontsize=13, fontweight="bold", va="center")
        begin = min(line.times[0] for panel in panels for line in panel.lines)
        end = max(line.times[-1] for panel in panels for line in panel.lines)
        for panel in panels:
            if panel.kind == "row":
                place = _place(panel, rows, height)
                figure.text(
                    place[0], place[1] + place[3] / 2, panel.title, fontsize=10.5, fontweight="bold", va="center"
                )
            else:
                _DRAWN[panel.kind](_frame(figure, panel, rows, height), panel, (begin, end))
        memory = BytesIO()
        figure.savefig(memory, format="png", facecolor=figure.get_facecolor())
    memory.seek(0)
    with Image.open(memory) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def _place(panel: Panel, rows: int, height: float) -> tuple[float, float, float, float]:
    """Left, bottom, width and height, as parts of the picture."""
    place, unit = panel.place, ROW_IN / height
    left = (place["x"] + GAP[0] / 2) / COLUMNS
    width = (place["w"] - GAP[0]) / COLUMNS
    tall = place["h"] * unit * (1 - GAP[1] / 2 / place["h"])
    return left, (rows - place["y"] - place["h"]) * unit + GAP[1] / 4 * unit, width, tall


def _frame(figure: Any, panel: Panel, rows: int, height: float) -> Any:
    """The white box of a panel, with its title; inside of it axes for what it shows."""
    left, bottom, width, tall = _place(panel, rows, height)
    box = figure.add_axes((left, bottom, width, tall), facecolor="white")
    box.set_xticks([])
    box.set_yticks([])
    for spine in box.spines.values():
        spine.set_color("#d0d4da")
    box.text(0.012 * 8 / panel.place["w"], 0.985, panel.title, transform=box.transAxes, va="top", fontweight="bold")
    if panel.kind in {"stat", "table"}:
        return box
    edge = 0.105 * width * 8 / panel.place["w"]  # as wide in a narrow panel as in a wide one
    inner = (left + edge, bottom + tall * 0.255, width * 0.98 - edge, tall * 0.635)
    return figure.add_axes(inner, facecolor="white")


def _stat(axes: Any, panel: Panel, _span: tuple[float, float]) -> None:
    line = panel.lines[0] if panel.lines else Line("", {}, [], [])
    value = line.last
    red = panel.red_from is not None and value >= panel.red_from
    axes.text(
        0.5, 0.52, shown(value, panel.unit), transform=axes.transAxes, ha="center", va="center", fontsize=17,
        color="#c4162a" if red else "#37872d", fontweight="bold",
    )  # fmt: skip
    if line.values:
        spark = axes.inset_axes((0.02, 0.03, 0.96, 0.24))
        spark.fill_between(line.times, np.nan_to_num(line.values), color="#37872d", alpha=0.25, linewidth=0)
        spark.axis("off")


def _table(axes: Any, panel: Panel, _span: tuple[float, float]) -> None:
    columns = ("backend", "role", "transport", "version", "instance")
    ordered = {tuple(line.labels.get(name, "") for name in columns): None for line in panel.lines}
    widths = (0.0, 0.15, 0.27, 0.6, 0.72)
    for column, at in zip(columns, widths, strict=True):
        axes.text(0.02 + at * 0.97, 0.83, column, transform=axes.transAxes, color="#5a6270", fontweight="bold")
    for place, row in enumerate(sorted(ordered)):
        for text, at in zip(row, widths, strict=True):
            axes.text(0.02 + at * 0.97, 0.73 - 0.085 * place, text[:28], transform=axes.transAxes, fontsize=7)


def _timeseries(axes: Any, panel: Panel, span: tuple[float, float]) -> None:
    order = sorted(panel.lines, key=lambda line: -max(_numbers(line), default=0.0))
    colours = {line.name: PALETTE[place % len(PALETTE)] for place, line in enumerate(panel.lines)}
    if panel.stacked:
        _stack(axes, panel, colours)
    for line in () if panel.stacked else panel.lines:
        times, values = _with_gaps(line)
        axes.plot(times, values, color=colours[line.name], linewidth=1.0)
        axes.fill_between(times, values, color=colours[line.name], alpha=0.07, linewidth=0)
    axes.set_ylim(0, None if panel.top is None else max(panel.top, axes.get_ylim()[1]))
    _axes(axes, panel.unit, span)
    columns = _columns(panel, [line.name for line in order[:MAX_NAMES]])
    named = order[: min(MAX_NAMES, columns * MAX_NAME_ROWS)]
    handles = [mpl.lines.Line2D([], [], color=colours[line.name], linewidth=2) for line in named]
    names = [line.name for line in named]
    if len(order) > len(named):
        names[-1] += f" (+{len(order) - len(named)} more)"
    axes.legend(
        handles, names, loc="upper left", bbox_to_anchor=(-0.11 * 8 / panel.place["w"], -0.13), ncols=columns,
        fontsize=6.5, frameon=False, handlelength=1.0, columnspacing=1.0, labelspacing=0.25, borderaxespad=0.0,
    )  # fmt: skip


def _columns(panel: Panel, names: Sequence[str]) -> int:
    """As many columns of the legend as the panel is wide enough for."""
    return max(1, min(3, int(panel.place["w"] * 7.5 / (max(map(len, names), default=1) + 4))))


def _stack(axes: Any, panel: Panel, colours: dict[str, str]) -> None:
    """Areas one on top of the other; what has no sample counts as 0."""
    seen = sorted({at for line in panel.lines for at in line.times})
    step = min((after - before for before, after in pairwise(seen)), default=1.0)
    times = np.arange(seen[0], seen[-1] + step / 2, step)
    base = np.zeros(len(times))
    for line in panel.lines:
        known = dict(zip(line.times, line.values, strict=True))
        upper = base + np.array([known.get(float(at), 0.0) for at in times])
        axes.fill_between(times, base, upper, color=colours[line.name], alpha=0.55, linewidth=0, step="mid")
        base = upper


def _with_gaps(line: Line) -> tuple[list[float], list[float]]:
    """With a break where a process was away."""
    if len(line.times) < 2:
        return line.times, line.values
    step = min(after - before for before, after in pairwise(line.times))
    times, values = [line.times[0]], [line.values[0]]
    for at, value in zip(line.times[1:], line.values[1:], strict=True):
        if at - times[-1] > 2.5 * step:
            times.append(times[-1] + step)
            values.append(math.nan)
        times.append(at)
        values.append(value)
    return times, values


def _numbers(line: Line) -> list[float]:
    return [value for value in line.values if not math.isnan(value)]


def _heatmap(axes: Any, panel: Panel, span: tuple[float, float]) -> None:
    """Buckets are cumulative: each one's own count is what it has more than the one below."""
    by_bound = {float(line.labels["le"]): dict(zip(line.times, line.values, strict=True)) for line in panel.lines}
    bounds = sorted(bound for bound in by_bound if math.isfinite(bound))
    times = sorted({at for values in by_bound.values() for at in values})
    cumulative = np.array([[by_bound[bound].get(at, math.nan) for at in times] for bound in bounds])
    counts = np.diff(cumulative, axis=0, prepend=0.0)
    used = np.flatnonzero(np.nansum(counts, axis=1) > 0)
    low, high = (
        (max(int(used[0]) - 1, 0), min(int(used[-1]) + 1, len(bounds) - 1)) if used.size else (0, len(bounds) - 1)
    )
    counts, bounds = counts[low : high + 1], bounds[low : high + 1]
    shades = np.ma.masked_less_equal(np.nan_to_num(counts), 0)
    rows = np.arange(len(bounds) + 1)
    columns = [*times, times[-1] + (times[-1] - times[-2] if len(times) > 1 else 1.0)]
    if shades.count():
        mesh = axes.pcolormesh(
            columns, rows, shades, cmap="Oranges", norm=LogNorm(vmin=0.5, vmax=max(shades.max(), 1.0))
        )
        bar = axes.figure.colorbar(mesh, ax=axes, pad=0.01, fraction=0.04)
        bar.ax.tick_params(labelsize=6, length=2)
        bar.set_label("rooms", fontsize=6)
    axes.set_yticks(rows[1:], [shown(bound, "s") for bound in bounds])
    _axes(axes, "", span)


def _axes(axes: Any, unit: str, span: tuple[float, float]) -> None:
    axes.set_xlim(span)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: _clock(at - span[0])))
    if unit:
        low, high = axes.get_ylim()
        ticks = np.asarray(MaxNLocator(5).tick_values(low, high))
        if unit == "bytes":  # round numbers of what is shown
            step = next((step for step, _ in IEC if high >= 2 * step), 1.0)
            ticks = np.asarray(MaxNLocator(5).tick_values(low / step, high / step)) * step
        axes.set_yticks([tick for tick in ticks if low <= tick <= high])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
        axes.grid(color="#e6e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=6.5, length=2, pad=1.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


_DRAWN: dict[str, Callable[[Any, Panel, tuple[float, float]], None]] = {
    "stat": _stat, "table": _table, "timeseries": _timeseries, "heatmap": _heatmap,
}  # fmt: skip
