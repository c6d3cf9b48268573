"""What operators see: request time stats, Prometheus metrics that are the same for every backend, recordings and traces.

``durations``, ``timestats`` and the flight recorder need nothing. Of what is loaded from here at first use the metrics need
prometheus-client (``pip install "kv-core[metrics]"``) and ``OpenTelemetryObserver`` needs opentelemetry-api
(``"kv-core[otel]"``): the absence of either is an ``ImportError`` that says so.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kv_core.observe.durations import duration_between
from kv_core.observe.timestats import RequestTimeStats, TransferFigures, TransferObserver, wire_rate

if TYPE_CHECKING:
    from kv_core.observe.flight import FlightRecorder
    from kv_core.observe.observer import MetricsObserver
    from kv_core.observe.otel import OpenTelemetryObserver
    from kv_core.observe.prometheus import PrometheusMetrics
    from kv_core.observe.serving import MetricsServer
    from kv_core.observe.sglang import SGLangMetrics

_LAZY = {
    "FlightRecorder": "kv_core.observe.flight",
    "MetricsObserver": "kv_core.observe.observer",
    "MetricsServer": "kv_core.observe.serving",
    "OpenTelemetryObserver": "kv_core.observe.otel",
    "PrometheusMetrics": "kv_core.observe.prometheus",
    "SGLangMetrics": "kv_core.observe.sglang",
}
_EXTRAS = {"prometheus_client": ("prometheus-client", "metrics"), "opentelemetry": ("opentelemetry-api", "otel")}
"""By package: the distribution that brings it, and our extra."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'kv_core.observe' has no attribute {name!r}")
    try:
        return getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        distribution, extra = _EXTRAS[package]
        raise ModuleNotFoundError(
            f'kv_core.observe.{name} needs {distribution}, which is not installed: pip install "kv-core[{extra}]"',
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "FlightRecorder",
    "MetricsObserver",
    "MetricsServer",
    "OpenTelemetryObserver",
    "PrometheusMetrics",
    "RequestTimeStats",
    "SGLangMetrics",
    "TransferFigures",
    "TransferObserver",
    "duration_between",
    "wire_rate",
]
