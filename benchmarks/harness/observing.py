"""How a benchmarked manager is observed: not at all, or in one of the ways that docs/tracing.md and docs/metrics.md describe."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kv_core import FlightRecorder, OpenTelemetryObserver, PrometheusMetrics, Role
from kv_core.contract.records import BackendInfo

OFF, HISTORY, PROMETHEUS, RECORDING, SPANS = "off", "history", "prometheus", "recording", "spans"
MODES = (OFF, HISTORY, PROMETHEUS, RECORDING, SPANS)
WITHOUT_HISTORY = (OFF, PROMETHEUS)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Observation:
    """One manager's observers. ``off`` is everything off; every other mode adds one thing, ``recording`` and ``spans`` to
    ``history``, which is kv-core as it comes.
    """

    def __init__(self, mode: str, info: BackendInfo, role: Role) -> None:
        self._open = ExitStack()
        self.mode = mode
        self.observers: list[Any] = []
        if mode == PROMETHEUS:
            from prometheus_client import CollectorRegistry  # noqa: PLC0415

            metrics = self._open.enter_context(PrometheusMetrics(CollectorRegistry()))
            self.observers = [metrics.observer(info, role)]
        elif mode == RECORDING:
            folder = Path(self._open.enter_context(tempfile.TemporaryDirectory()))
            self.observers = [self._open.enter_context(FlightRecorder(folder / "rooms.jsonl"))]
        elif mode == SPANS:
            self.observers = [OpenTelemetryObserver(self._provider())]

    def _provider(self) -> Any:
        """The SDK as applications have it, with an exporter that does nothing: what it exports to is not ours."""
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
            BatchSpanProcessor,
            SpanExporter,
            SpanExportResult,
        )

        class Nowhere(SpanExporter):
            def export(self, spans: Any) -> SpanExportResult:
                return SpanExportResult.SUCCESS

        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(Nowhere()))
        self._open.callback(provider.shutdown)
        return provider

    @property
    def config(self) -> dict[str, Any]:
        """Fields of ``TransferConfig``."""
        return {"flight_recorder": 0} if self.mode in WITHOUT_HISTORY else {}

    @property
    def named(self) -> dict[str, Any]:
        """What the engine says more of each room."""
        return {"traceparent": TRACEPARENT} if self.mode == SPANS else {}

    def close(self) -> None:
        """Close what was opened."""
        self._open.close()
