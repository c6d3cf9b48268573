"""Reads the numbers that are exported out of a manager's ``snapshot()`` and ``health()``. Pure.

A backend may bring a manager of its own: what its snapshot does not have counts as 0, and what is no count is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kv_core.observe import schema
from kv_core.observe.durations import known
from kv_core.observe.schema import Metric

MAX_TRANSPORT_CHARS = 64


@dataclass
class Figures:
    """Of one manager at one time. ``gauges``: by metric; ``counts``: what only grows, by metric and kind ("" if none)."""

    rooms: Counter[str] = field(default_factory=Counter)
    gauges: Counter[Metric] = field(default_factory=Counter)
    counts: Counter[tuple[Metric, str]] = field(default_factory=Counter)
    transports: set[str] = field(default_factory=set)


def add_up(each: Iterable[Figures]) -> Figures:
    """The sum over several managers of one backend and role in this process; of ``counts`` there is none."""
    total = Figures()
    for figures in each:
        total.rooms += figures.rooms
        total.gauges += figures.gauges
        total.transports |= figures.transports
    return total


def read_figures(snapshot: Mapping[str, Any], health: Mapping[str, Any] | None = None) -> Figures:
    """The numbers of one snapshot, and of a health report if there is one."""
    figures = Figures()
    phases = _table(snapshot, "rooms_by_phase")
    for state in schema.ROOM_STATES:
        figures.rooms[state] = _count(phases, state)
    transfers, control = _table(snapshot, "transfers"), _table(snapshot, "control")
    ended = [entry for entry in snapshot.get("quarantined") or () if isinstance(entry, Mapping)]
    dead = [
        name for name, thread in (health or {}).items() if isinstance(thread, Mapping) and thread.get("alive") is False
    ]
    figures.gauges.update(
        {
            schema.IN_FLIGHT: _count(transfers, "outstanding_transfers"),
            schema.BYTES_IN_FLIGHT: _count(transfers, "outstanding_bytes"),
            schema.QUEUED: _count(transfers, "queued_chunks"),
            schema.PARKED: _count(transfers, "parked_chunks"),
            schema.QUARANTINED_ROOMS: len(ended),
            schema.QUARANTINED_PAGES: sum(_count(entry, "pages") for entry in ended),
            schema.PEERS: _count(snapshot, "peers"),
            schema.LEASES: _count(snapshot, "leases"),
            schema.DEAD_THREADS: len(dead),
        }
    )
    for table in (_table(snapshot, "dropped"), _table(control, "dropped"), _table(transfers, "totals")):
        for name in table:
            figures.counts[_metric_of(str(name))] += _count(table, name)
    figures.counts[schema.LOST_SUBMISSIONS, ""] += _count(transfers, "lost_submissions")
    figures.counts[schema.EVENTS_DROPPED, ""] += _count(_table(health or {}, "observers"), "dropped")
    figures.transports = {_plain(name) for name in _table(snapshot, "fabrics").values()}
    return figures


_OWN = {name: metric for name, own in schema.OWN_COUNTERS.items() for metric in schema.SCHEMA if metric.name == own}


def _metric_of(name: str) -> tuple[Metric, str]:
    """Which counter a count of the snapshot belongs to, and its kind there."""
    if name in _OWN:
        return _OWN[name], ""
    if name in schema.STALE_KINDS:
        return schema.STALE, name
    return schema.DROPPED, name if name in schema.DROPPED_KINDS else schema.OTHER


def _table(source: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = source.get(name)
    return value if isinstance(value, Mapping) else {}


def _count(table: Mapping[str, Any], name: str) -> int:
    value = table.get(name, 0)
    return int(value) if isinstance(value, (int, float)) and known(value) else 0


def _plain(name: object) -> str:
    """A transport's own words, fit for a label."""
    return " ".join(str(name).split())[:MAX_TRANSPORT_CHARS] or schema.NONE
