"""What operators see: request time stats, and Prometheus metrics that are the same for every backend.

``durations`` and ``timestats`` need nothing. What is loaded from here at first use needs prometheus-client: it comes with
``pip install "kv-core[metrics]"``, and its absence is an ``ImportError`` that says so.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kv_core.observe.durations import duration_between
from kv_core.observe.timestats import RequestTimeStats, TransferFigures, TransferObserver, wire_rate

if TYPE_CHECKING:
    from kv_core.observe.observer import MetricsObserver
    from kv_core.observe.prometheus import PrometheusMetrics
    from kv_core.observe.serving import MetricsServer
    from kv_core.observe.sglang import SGLangMetrics

_LAZY = {
    "MetricsObserver": "kv_core.observe.observer",
    "MetricsServer": "kv_core.observe.serving",
    "PrometheusMetrics": "kv_core.observe.prometheus",
    "SGLangMetrics": "kv_core.observe.sglang",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'kv_core.observe' has no attribute {name!r}")
    try:
        return getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "prometheus_client":
            raise
        raise ModuleNotFoundError(
            f'kv_core.observe.{name} needs prometheus-client, which is not installed: pip install "kv-core[metrics]"',
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "MetricsObserver",
    "MetricsServer",
    "PrometheusMetrics",
    "RequestTimeStats",
    "SGLangMetrics",
    "TransferFigures",
    "TransferObserver",
    "duration_between",
    "wire_rate",
]
