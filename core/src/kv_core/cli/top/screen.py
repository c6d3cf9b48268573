"""Draws a view with rich. Pure, but for rich's own reading of the console's width."""

from __future__ import annotations

from collections.abc import Iterable

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kv_core.cli.top.quantiles import QUANTILES, Spread
from kv_core.cli.top.view import BootstrapView, EndpointRow, RoleView, View

UNKNOWN = "-"
WIDTH = 74
"""Columns of one role's panel: two of them stand side by side on a wide terminal."""
MAX_FAILURES = 6
STALLED_S = 5.0
"""A rank whose work made no progress for so long is shown in red."""
STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_QUEUES = ("transfers in flight", "bytes in flight", "chunks queued", "chunks not ready", "leases")


def number(value: float | None) -> str:
    """A number in four places at most."""
    if value is None:
        return UNKNOWN
    for step, letter in STEPS:
        if abs(value) >= step * 0.99995:
            return f"{value / step:.3g} {letter}" if value < step * 1000 else f"{value / step:.4g} {letter}"
    return f"{value:.3g}" if value < 1000 and value != int(value) else f"{value:.0f}"


def nbytes(value: float | None, unit: str = "B") -> str:
    """Bytes, in powers of 1000."""
    text = number(value)
    return text if text == UNKNOWN else f"{text}{'' if text[-1].isalpha() else ' '}{unit}"


def seconds(value: float | None) -> str:
    """A duration in the unit that suits it."""
    if value is None:
        return UNKNOWN
    if value < 1e-3:
        return f"{value * 1e6:.0f} us"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def draw(view: View, hint: str = "") -> RenderableType:
    """The whole frame. ``hint``: stands in its first line."""
    head = Text("kv-core top", style="bold")
    head.append(
        f"  {len(view.endpoints)} endpoints, rates and percentiles over {seconds(view.window_s or None)}", "default"
    )
    head.append(f"  {hint}", "dim")
    parts: list[RenderableType] = [head, _endpoints(view.endpoints)]
    parts += [_bootstrap(server) for server in view.bootstrap]
    parts.append(Columns([_role(role) for role in view.roles], padding=(0, 1)))
    return Group(*parts)


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="bold cyan")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right", style="default", no_wrap=True)
    return table


def _endpoints(rows: Iterable[EndpointRow]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("endpoint", "state", "role", "backend", "transport in use"):
        table.add_column(column, overflow="fold")
    for row in rows:
        if not row.up:
            table.add_row(escape(row.address), "[red]down[/]", f"[red]{escape(row.error)}[/]")
            continue
        state = f"[yellow]up, restarted {row.restarts}x[/]" if row.restarts else "[green]up[/]"
        cells = (row.roles or (row.kind,), row.backends, row.transports)
        table.add_row(escape(row.address), state, *(escape(", ".join(cell)) for cell in cells))
    return table


def _bootstrap(server: BootstrapView) -> Table:
    ready = "every rank registered" if server.ready else "waiting for ranks"
    table = _table(
        "rank (tp, pp, cp, dp)", "last renewal", "last progress", "instance", title=f"{server.address}: {ready}"
    )
    for rank in server.ranks:
        stalled = rank.progress_s >= STALLED_S
        progress = f"{seconds(rank.progress_s)} ago"
        table.add_row(
            ", ".join(map(str, rank.rank)), f"{seconds(rank.renewed_s)} ago",
            f"[red]{progress}[/]" if stalled else progress, escape(rank.instance_id[:12]),
        )  # fmt: skip
    return table


def _role(role: RoleView) -> Panel:
    parts: list[RenderableType] = [_traffic(role), _rooms(role), _latencies(role), _failures(role), _peers(role)]
    parts += [Text(f"! {trouble}", style="red") for trouble in role.troubles]
    count = f"{role.endpoints} endpoint" + "s" * (role.endpoints != 1)
    return Panel(Group(*parts), title=f"[bold]{escape(role.role)}[/] ({count})", title_align="left", width=WIDTH)


def _traffic(role: RoleView) -> Table:
    rates = role.per_second or {}
    table = _table("rooms a second", "opened", "success", "aborted", "failed", "of them failed")
    share = UNKNOWN if role.failed_share is None else f"{role.failed_share:.1%}"
    cells = [number(rates.get(name)) for name in ("opened", "success", "aborted", "failed")]
    cells[3] = f"[red]{cells[3]}[/]" if rates.get("failed") else cells[3]
    table.add_row("", *cells, share)
    goodput = Table.grid(padding=(0, 2))
    goodput.add_row(
        "goodput",
        f"[bold]{nbytes(role.goodput, 'B/s')}[/]",
        "of one room on the wire",
        f"[bold]{nbytes(role.wire_rate, 'B/s')}[/]",
    )
    both = Table.grid()
    both.add_row(table)
    both.add_row(goodput)
    return both


def _rooms(role: RoleView) -> Text:
    text = Text()
    states = {state: count for state, count in role.rooms.items() if count}
    _pairs(text, "rooms now", states)
    queues = {name: role.gauges[name] for name in _QUEUES if role.gauges[name]}
    text.append("\n")
    _pairs(text, "in flight", queues)
    return text


def _pairs(text: Text, title: str, values: dict[str, float]) -> None:
    text.append(f"{title}  ", style="bold cyan")
    shown = (f"{name} {nbytes(value) if name.startswith('bytes') else number(value)}" for name, value in values.items())
    text.append(", ".join(shown) or "none")


def _latencies(role: RoleView) -> Table:
    table = _table("latency", *QUANTILES, "rooms")
    for name, found in (role.latency_s or {}).items():
        table.add_row(name, *(_percentile(found, key) for key in QUANTILES), number(found.count))
    return table


def _percentile(found: Spread, key: str) -> str:
    value: float | None = getattr(found, key)
    return ("over " if key in found.beyond else "") + seconds(value)


def _failures(role: RoleView) -> RenderableType:
    if not role.failures:
        return Text.assemble(("failures  ", "bold cyan"), "none since the start")
    table = _table("failures", "in the window", "since the start")
    for row in role.failures[:MAX_FAILURES]:
        table.add_row(escape(f"{row.stage}/{row.reason}"), number(row.window), number(row.total))
    if rest := role.failures[MAX_FAILURES:]:
        table.add_row(
            f"{len(rest)} other reasons",
            number(sum(row.window or 0 for row in rest)),
            number(sum(row.total for row in rest)),
        )
    return table


def _peers(role: RoleView) -> Text:
    text = Text()
    _pairs(text, "peers", {"now": role.peers.now, **role.peers.total})
    if role.peers.window:
        text.append("\n")
        _pairs(text, "of these in the window", role.peers.window)
    return text
