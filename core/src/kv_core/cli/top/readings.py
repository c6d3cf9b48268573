"""Prometheus text, read into numbers. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from kv_core.observe.schema import SCHEMA, Kind

Labels: TypeAlias = frozenset[tuple[str, str]]
Samples: TypeAlias = Mapping[str, Mapping[Labels, float]]
"""By the sample's name, then by its labels."""

KNOWN = frozenset(name for metric in SCHEMA for name in metric.series)
"""What is read; anything else that an endpoint exports is not looked at."""
GROWING = frozenset(name for metric in SCHEMA if metric.kind is not Kind.GAUGE for name in metric.series)
"""Those that only grow while a process lives."""


class NoMetricsError(ValueError):
    """The text is no Prometheus text, or has no metric of kv-core's. The message is a sentence."""


@dataclass(frozen=True)
class Reading:
    """What one endpoint said at one time. ``at_s``: of a monotonic clock."""

    at_s: float
    samples: Samples

    def of(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """Labels and value of each sample of this name."""
        for labels, value in self.samples.get(name, {}).items():
            yield dict(labels), value


def load_parser() -> Any:
    """prometheus-client's parser. Raises ``ModuleNotFoundError`` with what to install."""
    try:
        from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "prometheus_client":
            raise
        raise ModuleNotFoundError(
            'kv-core top needs prometheus-client, which is not installed: pip install "kv-core[metrics]"',
            name=error.name,
        ) from error
    return text_string_to_metric_families


def parse(text: str, at_s: float) -> Reading:
    """Read an exposition. Raises ``NoMetricsError``, and ``ModuleNotFoundError`` without prometheus-client."""
    families = load_parser()
    samples: dict[str, dict[Labels, float]] = defaultdict(dict)
    try:
        for family in families(text):
            for sample in family.samples:
                if sample.name in KNOWN:
                    samples[sample.name][frozenset(sample.labels.items())] = float(sample.value)
    except (ValueError, KeyError, IndexError) as error:  # what the parser raises for text that is none
        raise NoMetricsError(
            f"what answers there is no Prometheus text ({str(error)[:100]}): check the address"
        ) from None
    if not samples:
        raise NoMetricsError(
            "there is no kv_core_ metric: check the address, and that the process exports them (docs/metrics.md)"
        )
    return Reading(at_s, dict(samples))
