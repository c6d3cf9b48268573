"""Percentiles from a histogram's buckets, as Prometheus's ``histogram_quantile`` has them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isinf


@dataclass(frozen=True)
class Spread:
    """Percentiles of what was observed within the window; None: nothing was.

    Between two bounds values are taken to lie evenly. ``beyond``: percentiles that lie above the last finite bound, which
    is what stands for them then.
    """

    count: float
    p50: float | None
    p90: float | None
    p99: float | None
    beyond: tuple[str, ...] = ()


QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def spread(buckets: Iterable[tuple[dict[str, str], float]]) -> Spread:
    """Of the buckets of one histogram, ``le`` among their labels; those of several series are added up."""
    cumulative: dict[float, float] = {}
    for labels, value in buckets:
        bound = float(labels["le"])
        cumulative[bound] = cumulative.get(bound, 0.0) + value
    count = cumulative.get(inf, 0.0)
    if count <= 0:
        return Spread(0.0, None, None, None)
    found = {name: quantile(cumulative, share * count) for name, share in QUANTILES.items()}
    beyond = tuple(name for name, (_, above) in found.items() if above)
    return Spread(count, found["p50"][0], found["p90"][0], found["p99"][0], beyond)


def quantile(cumulative: Mapping[float, float], rank: float) -> tuple[float | None, bool]:
    """The value of this rank (more than 0, at most the count), and whether it lies above the last finite bound."""
    lower, below = 0.0, 0.0
    for bound in sorted(cumulative):
        here = cumulative[bound]
        if here >= rank and not isinf(bound):
            return lower + (bound - lower) * (rank - below) / (here - below), False
        if not isinf(bound):
            lower, below = bound, here
    return (lower or None), True
