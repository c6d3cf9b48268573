"""What a spawned process does in the tests of tracing: the prefill side of some rooms, recorded and with OpenTelemetry spans."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kv_core import FlightRecorder, OpenTelemetryObserver, Role, RoomEvent, TransferConfig, load_backend
from tests.support.memory import RankMemory, Shape
from tests.support.pair import BACKEND, assert_success
from tests.support.waiting import wait_until


class Keeper:
    """Keeps every event of a room, to be sent to the parent."""

    def __init__(self) -> None:
        self.events: list[RoomEvent] = []

    def kv_room_event(self, event: RoomEvent) -> None:
        """See the hook."""
        self.events.append(event)


def exporting() -> tuple[InMemorySpanExporter, OpenTelemetryObserver]:
    """An observer, and where its spans end up."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter, OpenTelemetryObserver(provider)


def ids(exporter: InMemorySpanExporter) -> list[tuple[str, str, str]]:
    """(name, trace id, parent's span id or empty) of each span."""
    return [
        (span.name, f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}" if span.parent else "")
        for span in exporter.get_finished_spans()
    ]


def serve(connection: Connection, addr: str, rooms: list[int], recording: str) -> None:
    """Send each room in two chunks, then tell the parent of the spans and events."""
    exporter, spans = exporting()
    keeper = Keeper()
    memory = RankMemory(Shape())
    with connection, FlightRecorder(recording) as recorder:
        observers: list[Any] = [spans, recorder, keeper]
        config = TransferConfig(bootstrap_addr=addr)
        with load_backend(BACKEND).create_manager(Role.PREFILL, memory.args(), config, observers=observers) as manager:
            connection.send("ready")
            for room in rooms:
                sender = manager.create_sender(addr, room)
                sender.init(3)
                sender.send([1])
                sender.send([2, 3])
                assert_success(sender)
                sender.clear()
            wait_until(lambda: len(keeper.events) >= 5 * len(rooms), "the last event")
        connection.send((ids(exporter), keeper.events))
        connection.recv()
