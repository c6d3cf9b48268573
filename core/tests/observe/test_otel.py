"""OpenTelemetry spans, through the real SDK."""

from __future__ import annotations

from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import StatusCode

from core.tests.observe.chrome_support import served
from core.tests.observe.support import feed
from core.tests.protocol.support import SHORT, Bench, Rank
from kv_core.observe import OpenTelemetryObserver

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


def spans_of(*ranks: Rank, only: int) -> list[ReadableSpan]:
    """The spans of this room, as they are exported, and those below them."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_ON))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observer = OpenTelemetryObserver(provider)
    for rank in ranks:
        feed(observer, [event for event in rank.told if event.room == only])
    provider.shutdown()
    return list(exporter.get_finished_spans())


def traced(bench: Bench, prefill: Rank, decode: Rank, *, up: str | None = None, down: str | None = None) -> None:
    """Room 5, with two chunks; either engine may name a trace."""
    target = decode.do(decode.machine.open, 5, "boot:8998", traceparent=up)
    decode.init(target)
    source = prefill.do(prefill.machine.open, 5, "boot:8998", traceparent=down)
    prefill.init(source, 2)
    decode.offer(target, 7, 8)
    bench.pump()
    for item in (1, 2):
        prefill.send(source, item)
        chunk = prefill.claim()
        bench.now += 0.25
        prefill.land(chunk)
    bench.pump()


def named(spans: list[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def test_a_trace_given_to_decode_is_prefills_too():
    bench = Bench()
    prefill, decode = bench.pair()
    traced(bench, prefill, decode, up=PARENT)
    spans = spans_of(prefill, decode, only=5)
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE_ID}
    for name in ("kv_core.prefill", "kv_core.decode"):
        (span,) = named(spans, name)
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == SPAN_ID
        assert span.parent.is_remote
        assert span.status.status_code is StatusCode.UNSET
        assert span.attributes is not None
        assert span.attributes["kv_core.room"] == 5
        assert span.attributes["kv_core.state"] == "Success"
        assert span.attributes["kv_core.bytes"] == 200
    (room,) = named(spans, "kv_core.prefill")
    chunks = named(spans, "kv_core.chunk")
    assert [span.attributes["kv_core.chunk"] for span in chunks if span.attributes] == [0, 1]
    for span in chunks:
        assert span.parent is not None
        assert span.parent.span_id == room.context.span_id
        assert span.end_time is not None
        assert span.start_time is not None
        assert span.end_time - span.start_time == pytest.approx(0.25e9, abs=2e4)
        assert room.start_time is not None
        assert room.end_time is not None
        assert room.start_time <= span.start_time <= span.end_time <= room.end_time
    assert [event.name for event in room.events] == [
        "opened", "pages", "announced", "metadata", "ready", "moving", "confirming", "verdict", "success",
    ]  # fmt: skip


def test_each_side_keeps_what_its_own_engine_said():
    bench = Bench()
    prefill, decode = bench.pair()
    other = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    traced(bench, prefill, decode, up=PARENT, down=other)
    spans = spans_of(prefill, decode, only=5)
    ids = {span.name: f"{span.context.trace_id:032x}" for span in spans}
    assert (ids["kv_core.decode"], ids["kv_core.prefill"]) == (TRACE_ID, other.split("-")[1])


def test_without_any_each_room_begins_a_trace():
    bench = Bench()
    prefill, decode = bench.pair()
    traced(bench, prefill, decode)
    spans = spans_of(prefill, decode, only=5)
    (one,), (two,) = named(spans, "kv_core.prefill"), named(spans, "kv_core.decode")
    assert one.parent is two.parent is None
    assert one.context.trace_id != two.context.trace_id


def test_a_parent_that_is_not_sampled_costs_no_span():
    bench = Bench()
    prefill, decode = bench.pair()
    traced(bench, prefill, decode, up=f"{PARENT[:-2]}00")
    assert spans_of(prefill, decode, only=5) == []


def test_a_failed_room_is_an_error_with_its_sentence_and_its_drain():
    bench = Bench()
    prefill, decode = bench.pair()
    source, _ = bench.bound(prefill, decode, 5, 7)
    prefill.send(source, 1)
    chunk = prefill.claim()
    prefill.do(prefill.machine.chunk_failed, chunk, "the cable is out", quiescent=False)
    bench.pass_time(2.0)
    prefill.do(prefill.machine.chunk_quiescent, chunk)
    bench.pump()
    spans = spans_of(prefill, only=5)
    (room,) = named(spans, "kv_core.prefill")
    assert room.status.status_code is StatusCode.ERROR
    assert room.status.description is not None
    assert "transfer/transport_error: the cable is out" in room.status.description
    assert room.attributes is not None
    assert room.attributes["error.type"] == "transfer/transport_error"
    (chunk_span,) = named(spans, "kv_core.chunk")
    assert chunk_span.status.status_code is StatusCode.ERROR
    (drain,) = named(spans, "kv_core.drain")
    assert drain.parent is not None
    assert drain.parent.span_id == room.context.span_id
    assert drain.start_time is not None
    assert drain.end_time is not None
    assert drain.end_time - drain.start_time == pytest.approx(2e9, rel=0.001)


def test_attributes_and_events_are_bounded():
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = bench.bound(prefill, decode, 5, *([7] * 2_000))
    for _ in range(1_900):
        prefill.send(source, 1)
        prefill.land()
    decode.abort(target, "x" * 4_000)
    bench.pump()
    spans = spans_of(prefill, only=5)
    assert len(spans) <= 1 + SHORT.flight_recorder
    for span in spans:
        assert len(span.attributes or {}) < 16
        assert len(span.events) < 16
        assert len(span.status.description or "") <= 1_024


def test_without_histories_there_is_still_a_span():
    bench = Bench()
    off = replace(SHORT, flight_recorder=0)
    prefill, decode = bench.prefill(settings=off), bench.decode(settings=off)
    bench.meet(decode)
    traced(bench, prefill, decode, up=PARENT)
    (room,) = spans_of(prefill, only=5)
    assert room.start_time is not None
    assert room.end_time is not None
    assert room.end_time - room.start_time == pytest.approx(0.5e9, rel=0.01)


def test_rooms_that_never_drain_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch):
    from kv_core.observe import otel

    monkeypatch.setattr(otel, "MAX_DRAINING", 3)
    bench = Bench()
    prefill, decode = bench.pair()
    served(bench, prefill, decode, [1])
    rooms = []
    for number in range(10, 20):
        source, _ = bench.bound(prefill, decode, number, 7)
        prefill.send(source, 1)
        rooms.append(prefill.claim())
        prefill.abort(source)
    provider = TracerProvider()
    observer = OpenTelemetryObserver(provider)
    feed(observer, prefill.told)
    assert len(observer._draining) == 3
