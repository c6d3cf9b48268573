"""The schema as prometheus-client's objects. They belong to no registry: ``PrometheusMetrics`` hands them out when scraped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias, cast

from prometheus_client import Counter, Gauge, Histogram, metrics
from prometheus_client.metrics_core import Metric as Family

from kv_core.contract.failures import InvalidConfig
from kv_core.observe.schema import BASE_LABELS, Kind, Metric

Instrument: TypeAlias = Counter | Gauge | Histogram
GaugeMode: TypeAlias = Literal[
    "all", "liveall", "min", "livemin", "max", "livemax", "sum", "livesum", "mostrecent", "livemostrecent"
]


class Families:
    """Every metric of ``metrics``, with the constant labels in front of its own. May be used from any thread."""

    def __init__(
        self, schema: Iterable[Metric], constant: Mapping[str, str] | None = None, base: tuple[str, ...] = BASE_LABELS
    ) -> None:
        self._schema = tuple(schema)
        self._base = base
        self._constant = {str(name): str(value) for name, value in (constant or {}).items()}
        taken = {*base, *(label for metric in self._schema for label in metric.labels)}
        clash = sorted(taken & set(self._constant))
        if clash:
            raise InvalidConfig(f"labels names {clash}, which the metrics have already: choose other names")
        self._made = {metric: self._make(metric) for metric in self._schema}

    def _make(self, metric: Metric) -> Instrument:
        labels = (*self._base, *self._constant, *metric.labels)
        try:
            if metric.kind is Kind.COUNTER:
                return Counter(metric.name, metric.help, labels, registry=None)
            if metric.kind is Kind.GAUGE:
                mode = cast(GaugeMode, metric.multiprocess)
                return Gauge(metric.name, metric.help, labels, registry=None, multiprocess_mode=mode)
            return Histogram(metric.name, metric.help, labels, registry=None, buckets=metric.buckets)
        except ValueError as error:
            raise InvalidConfig(f"labels {sorted(self._constant)} can't be labels of a metric: {error}") from error

    def _child(self, metric: Metric, base: tuple[str, ...], own: tuple[str, ...]) -> Any:
        wanted = (*base, *self._constant.values(), *own)
        parent: metrics.MetricWrapperBase = self._made[metric]
        return parent.labels(*wanted) if wanted else parent

    def counter(self, metric: Metric, base: tuple[str, ...], *own: str) -> Counter:
        """The counter with these values of the base labels and its own; it exists at 0 from now on."""
        child = self._child(metric, base, own)
        assert isinstance(child, Counter), metric.name
        return child

    def gauge(self, metric: Metric, base: tuple[str, ...], *own: str) -> Gauge:
        """The gauge with these values of the labels."""
        child = self._child(metric, base, own)
        assert isinstance(child, Gauge), metric.name
        return child

    def histogram(self, metric: Metric, base: tuple[str, ...], *own: str) -> Histogram:
        """The histogram with these values of the labels."""
        child = self._child(metric, base, own)
        assert isinstance(child, Histogram), metric.name
        return child

    def collect(self) -> Iterator[Family]:
        """Every metric with its samples."""
        for made in self._made.values():
            for family in made.collect():
                # When a series was made is of no use here, and would double their number.
                family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                yield family

    def describe(self) -> Iterator[Family]:
        """Every metric without samples, by which a registry knows the names."""
        for made in self._made.values():
            yield from made.describe()
