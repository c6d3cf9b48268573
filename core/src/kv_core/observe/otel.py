"""OpenTelemetry spans of rooms and their chunks: an observer. Needs opentelemetry-api (``pip install "kv-core[otel]"``).

A room is one span on each side, made when it has ended from the times in its history, so that the engine's thread pays for
none of it. Its parent is the ``traceparent`` that the engine gave ``create_sender`` or ``create_receiver``; a side that was
given none takes the other side's, which came with the messages between them. Without either it begins a trace of its own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from importlib.metadata import version
from time import monotonic_ns, time_ns

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from kv_core.contract.enums import Role
from kv_core.contract.failures import Failure
from kv_core.contract.moments import CHUNK_FAILED, CHUNK_QUIET, FAILED, HANDED, LANDED, PHASE, POSTED, named
from kv_core.contract.observers import only
from kv_core.contract.records import RoomEvent, RoomEventKind
from kv_core.observe.rows import DRAIN, chunks

NS = 1_000_000_000
KINDS = {Role.PREFILL: SpanKind.PRODUCER, Role.DECODE: SpanKind.CONSUMER}
OF_CHUNKS = frozenset({HANDED, POSTED, LANDED, CHUNK_FAILED, CHUNK_QUIET})
"""Moments that are no events of the room's span: chunks have spans of their own."""
MAX_DRAINING = 4_096
"""Failed rooms that are remembered until their pages are free."""
MAX_TEXT = 1_024


class OpenTelemetryObserver:
    """Give it to ``create_manager(..., observers=[it])``; one may serve any number of managers. May be used from any thread.

    ``provider``: None takes the global one, which does nothing until the application has set up an SDK. Whether a room's
    spans are recorded is the SDK's sampler's decision, made from the parent. With ``TransferConfig.flight_recorder`` 0 there
    are no histories: the span of a room that succeeded then begins where its metric says, and no chunks are seen.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("kv_core", version("kv-core"), tracer_provider=provider)
        self._lock = threading.Lock()
        self._draining: OrderedDict[tuple[str, int], SpanContext] = OrderedDict()

    @only(RoomEventKind.CONCLUDED, RoomEventKind.RELEASED)
    def kv_room_event(self, event: RoomEvent) -> None:
        """See ``hookspecs.kv_room_event``."""
        if event.kind is RoomEventKind.CONCLUDED:
            self._room(event)
        elif event.kind is RoomEventKind.RELEASED:
            self._released(event)

    def _room(self, event: RoomEvent) -> None:
        wall = _Wall()
        span = self._tracer.start_span(
            f"kv_core.{event.role.value}", _parent(event.traceparent), KINDS[event.role], attributes=attributes(event),
            start_time=wall.ns(_began(event)),
        )  # fmt: skip
        if not span.is_recording():
            return
        for moment in event.history:
            if moment[1] not in OF_CHUNKS and moment[1] != FAILED:
                values = named(moment)
                name = str(values.pop("phase")) if moment[1] == PHASE else str(moment[1])
                span.add_event(name, _told(values), wall.ns(moment[0]))
        self._chunks(span, event, wall)
        if event.failure is not None:
            _fail(span, event.failure)
            self._remember(event, span.get_span_context())
        span.end(wall.ns(event.time_s))

    def _chunks(self, room: Span, event: RoomEvent, wall: _Wall) -> None:
        context = trace.set_span_in_context(room)
        for chunk in chunks(event.history, event.time_s):
            more = {f"kv_core.{name}": value for name, value in _told(chunk.more).items()}
            span = self._tracer.start_span("kv_core.chunk", context, attributes=more, start_time=wall.ns(chunk.start_s))
            if not chunk.more["landed"]:
                span.set_status(Status(StatusCode.ERROR, "the chunk had not landed when the room ended"))
            span.end(wall.ns(chunk.stop_s))

    def _remember(self, event: RoomEvent, context: SpanContext) -> None:
        with self._lock:
            self._draining[event.instance, event.life] = context
            while len(self._draining) > MAX_DRAINING:
                self._draining.popitem(last=False)

    def _released(self, event: RoomEvent) -> None:
        """The pages of a failed room are free: how long that took is a span below the room's."""
        with self._lock:
            context = self._draining.pop((event.instance, event.life), None)
        if context is not None and event.drain_latency_s:
            wall = _Wall()
            parent = trace.set_span_in_context(NonRecordingSpan(context))
            start = wall.ns(event.time_s - event.drain_latency_s)
            self._tracer.start_span(f"kv_core.{DRAIN}", parent, start_time=start).end(wall.ns(event.time_s))


class _Wall:
    """Monotonic seconds as nanoseconds of the Unix epoch, by what both clocks show now."""

    def __init__(self) -> None:
        self._offset = time_ns() - monotonic_ns()

    def ns(self, time_s: float) -> int:
        return round(time_s * NS) + self._offset


def attributes(event: RoomEvent) -> dict[str, AttributeValue]:
    """What is said of a room: as many attributes as are written here, whatever traffic does."""
    found: dict[str, AttributeValue] = {
        "kv_core.room": event.room, "kv_core.life": event.life, "kv_core.role": event.role.value,
        "kv_core.backend": event.backend, "kv_core.instance": event.instance, "kv_core.state": event.state.name,
    }  # fmt: skip
    metric, failure = event.metric, event.failure
    if failure is not None:
        found |= {
            "error.type": f"{failure.stage.value}/{failure.code.value}", "kv_core.side": failure.side.value,
            "kv_core.retryable": failure.retryable, "kv_core.peer": failure.peer[:MAX_TEXT],
        }  # fmt: skip
    elif metric is not None:
        known = {
            "kv_core.bytes": metric.transfer_total_bytes, "kv_core.chunks": metric.chunks,
            "kv_core.wire_seconds": metric.transfer_latency_s, "kv_core.latency_source": metric.latency_source or None,
        }  # fmt: skip
        found |= {name: value for name, value in known.items() if value is not None}
    return found


def _told(values: dict[str, object]) -> dict[str, AttributeValue]:
    return {
        name: value if isinstance(value, bool | int | float) else str(value)[:MAX_TEXT]
        for name, value in values.items()
    }


def _fail(span: Span, failure: Failure) -> None:
    span.set_status(Status(StatusCode.ERROR, str(failure)[:MAX_TEXT]))


def _began(event: RoomEvent) -> float:
    if event.history:
        return float(event.history[0][0])
    metric = event.metric
    return event.time_s - (metric.total_latency_s or 0.0 if metric is not None else 0.0)


def _parent(traceparent: str | None) -> Context:
    """The context that a traceparent stands for (core has checked its form); without one a context with nothing in it."""
    if traceparent is None:
        return Context()
    _, trace_id, span_id, flags = traceparent.split("-")
    context = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return trace.set_span_in_context(NonRecordingSpan(context), Context())
