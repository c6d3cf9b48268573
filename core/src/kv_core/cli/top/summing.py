"""Adds up what endpoints said, for each role. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kv_core.cli.top.quantiles import Spread, spread
from kv_core.cli.top.readings import Reading
from kv_core.cli.top.view import FailureRow, PeerFigures, RoleView
from kv_core.cli.top.window import Growth
from kv_core.observe import schema
from kv_core.observe.schema import Metric

Sample: TypeAlias = tuple[dict[str, str], float]
Table: TypeAlias = defaultdict[tuple[str, ...], float]
"""By labels' values."""

LATENCIES = {
    "room": schema.ROOM_SECONDS, "bootstrap": schema.BOOTSTRAP_SECONDS, "queue wait": schema.QUEUE_SECONDS,
    "wire": schema.WIRE_SECONDS, "drain": schema.DRAIN_SECONDS,
}  # fmt: skip
GAUGES = {
    "transfers in flight": schema.IN_FLIGHT, "bytes in flight": schema.BYTES_IN_FLIGHT, "chunks queued": schema.QUEUED,
    "chunks not ready": schema.PARKED, "leases": schema.LEASES, "rooms quarantined": schema.QUARANTINED_ROOMS,
    "pages quarantined": schema.QUARANTINED_PAGES, "threads ended": schema.DEAD_THREADS,
}  # fmt: skip
PEER_NEWS = {
    "joined": schema.JOINED, "suspected": schema.SUSPECTED, "recovered": schema.RECOVERED, "lost": schema.LOST,
    "unmet": schema.UNMET,
}  # fmt: skip
OUTCOMES = (schema.SUCCESS, schema.ABORTED, schema.FAILED)


@dataclass(frozen=True)
class Watched:
    """One metrics endpoint's contribution. ``reading``: None while it does not answer."""

    reading: Reading | None
    growth: Growth | None


def in_use(reading: Reading) -> dict[str, tuple[str, ...]]:
    """Roles, backends and transports of one endpoint."""
    found = [labels for labels, value in reading.of(schema.INFO.name) if value]
    names = {"roles": "role", "backends": "backend", "transports": "transport"}
    return {key: tuple(sorted({labels.get(label, "") for labels in found})) for key, label in names.items()}


def roles_of(watched: Sequence[Watched]) -> tuple[RoleView, ...]:
    """One view for each role that any endpoint has."""
    readings = [one.reading for one in watched if one.reading is not None]
    names = {labels.get("role", "") for reading in readings for labels, _ in reading.of(schema.ROOMS.name)}
    return tuple(_role(name, watched) for name in sorted(names, reverse=True))  # prefill first: so the data flows


class _Sums:
    """Sums over the endpoints that have a role."""

    def __init__(self, role: str, watched: Sequence[Watched]) -> None:
        self._role = role
        self.readings: list[Reading] = []
        self.growths: list[Growth] = []
        for one in watched:
            if one.reading is not None and any(self._mine(one.reading.of(schema.ROOMS.name))):
                self.readings.append(one.reading)
                self.growths += [one.growth] if one.growth is not None else []

    def _mine(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        return ((labels, value) for labels, value in samples if labels.get("role", "") == self._role)

    def now(self, metric: Metric, *by: str) -> Table:
        """Values by these labels."""
        name = metric.series[0]
        return _by(by, (pair for reading in self.readings for pair in self._mine(reading.of(name))))

    def window(self, metric: Metric, *by: str) -> Table:
        """What counters grew by within the window."""
        name = metric.series[0]
        return _by(by, (pair for growth in self.growths for pair in self._mine(growth.of(name))))

    def rate(self, name: str, **labels: str) -> float:
        """Growth by second: each endpoint's own seconds, then the sum."""
        total = 0.0
        for growth in self.growths:
            mine = (value for found, value in self._mine(growth.of(name)) if labels.items() <= found.items())
            total += sum(mine) / growth.seconds
        return total

    def spread(self, metric: Metric) -> Spread:
        """Percentiles of a histogram within the window."""
        name = f"{metric.name}_bucket"
        return spread(pair for growth in self.growths for pair in self._mine(growth.of(name)))


def _by(labels: Sequence[str], samples: Iterable[Sample]) -> Table:
    found: Table = defaultdict(float)
    for have, value in samples:
        found[tuple(have.get(label, "") for label in labels)] += value
    return found


def _role(role: str, watched: Sequence[Watched]) -> RoleView:
    sums = _Sums(role, watched)
    known = bool(sums.growths)
    wire = sums.rate(f"{schema.WIRE_SECONDS.name}_sum") if known else 0.0
    ended = {outcome: sums.rate(schema.CONCLUDED.series[0], outcome=outcome) for outcome in OUTCOMES}
    judged = ended[schema.SUCCESS] + ended[schema.FAILED]
    gauges = {name: sums.now(metric)[()] for name, metric in GAUGES.items()}
    return RoleView(
        role=role,
        endpoints=len(sums.readings),
        rooms={state: sums.now(schema.ROOMS, "state")[(state,)] for state in schema.ROOM_STATES},
        per_second={"opened": sums.rate(schema.OPENED.series[0]), **ended} if known else None,
        failed_share=ended[schema.FAILED] / judged if judged else None,
        goodput=sums.rate(schema.TRANSFERRED.series[0]) if known else None,
        wire_rate=sums.rate(f"{schema.ROOM_BYTES.name}_sum") / wire if wire else None,
        latency_s={name: sums.spread(metric) for name, metric in LATENCIES.items()} if known else None,
        failures=tuple(_failures(sums, known=known)),
        peers=_peers(sums),
        gauges=gauges,
        troubles=tuple(_troubles(sums, gauges)),
    )


def _failures(sums: _Sums, *, known: bool) -> Iterator[FailureRow]:
    by = ("outcome", "stage", "reason")
    totals, window = sums.now(schema.CONCLUDED, *by), sums.window(schema.CONCLUDED, *by)
    for key, total in sorted(totals.items(), key=lambda item: (-window[item[0]], -item[1], item[0])):
        outcome, stage, reason = key
        if outcome != schema.SUCCESS and total:
            yield FailureRow(outcome, stage, reason, window[key] if known else None, total)


def _peers(sums: _Sums) -> PeerFigures:
    def news(of: Callable[..., Table]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, metric in PEER_NEWS.items():
            for reason, count in sorted(of(metric, *metric.labels).items()):
                if count:
                    found[": ".join((name, *reason))] = count
        return found

    return PeerFigures(sums.now(schema.PEERS)[()], news(sums.window), news(sums.now))


def _troubles(sums: _Sums, gauges: dict[str, float]) -> Iterator[str]:
    if gauges["threads ended"]:
        yield f"{gauges['threads ended']:g} threads of open managers have ended: restart the rank"
    if gauges["pages quarantined"]:
        yield f"{gauges['pages quarantined']:g} pages wait for the proof that nothing can touch them"
    told = {
        schema.EVENTS_DROPPED: "events were missed by slow observers: rates and percentiles are too low",
        schema.SCRAPE_ERRORS: "snapshots of a manager could not be read: its gauges are missing",
        schema.REFUSED: "measurements were negative or no numbers, and were not taken",
        schema.LOST_SUBMISSIONS: "submissions of which the transport never said what became",
    }
    for metric, text in told.items():
        if count := sums.now(metric)[()]:
            yield f"{count:g} {text}"
