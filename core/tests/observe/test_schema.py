"""The schema itself: names, units, buckets, bounded labels, and that everything exists at 0 from the start."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import kv_core.observe
from core.tests.observe.support import BOTH, INFO, Samples, feed, fresh, scrape
from kv_core import FailureCode, FailureStage, InvalidConfig, KVPoll, TransferConfig
from kv_core.contract.enums import Role
from kv_core.contract.failures import Failure
from kv_core.contract.records import KVTransferMetric, RoomEvent, RoomEventKind
from kv_core.observe import schema
from kv_core.observe.schema import SCHEMA, Kind
from kv_core.runtime.control import DROP_REASONS
from kv_core.runtime.control_loop import NOT_UNDERSTOOD

SOURCES = Path(kv_core.observe.__file__).parents[1]
COUNTED = re.compile(r'counters\[(f?)"([^"]+)"\]')


def event(kind: RoomEventKind = RoomEventKind.CONCLUDED, role: Role = Role.PREFILL, **more: Any) -> RoomEvent:
    return RoomEvent(kind, "test", role, 1, 1, KVPoll.Success, 1.0, **more)


def concluded(**metric: Any) -> RoomEvent:
    return event(metric=KVTransferMetric(**metric))


def test_every_metric_is_listed_once_and_has_a_help():
    defined = {value for value in vars(schema).values() if isinstance(value, schema.Metric)}
    assert defined == set(SCHEMA)
    assert len({metric.name for metric in SCHEMA}) == len(SCHEMA)
    assert all(metric.help.endswith(".") for metric in SCHEMA)
    assert all(metric.name.startswith("kv_core_") for metric in SCHEMA)


def test_units_are_base_units_and_stand_at_the_end_of_the_name():
    for metric in SCHEMA:
        assert not re.search(r"_(ms|us|mb|gb|kib|mib|gib|minutes)(_|$)", metric.name), metric.name
        if metric.buckets in (schema.SECONDS, schema.WHOLE_SECONDS):
            assert metric.name.endswith("_seconds")
        if metric.buckets == schema.BYTES:
            assert metric.name.endswith("_bytes")


def test_buckets_rise_and_reach_the_longest_deadline():
    config = TransferConfig()
    longest = max(config.bootstrap_timeout_s, config.waiting_timeout_s, config.transferring_timeout_s)
    for metric in SCHEMA:
        assert (metric.kind is Kind.HISTOGRAM) == bool(metric.buckets)
        assert all(low < high for low, high in pairwise(metric.buckets))
        if metric.name.endswith("_seconds") and metric.buckets:
            assert metric.buckets[-1] >= longest == 300
    assert schema.WHOLE_SECONDS[-1] >= 3 * longest


def test_every_count_that_core_keeps_has_its_place():
    """A new counter in the protocol or the control channel has to be sorted in, or it would be "other"."""
    listed = {*schema.STALE_KINDS, *schema.DROPPED_KINDS, *schema.OWN_COUNTERS}
    for path in (SOURCES / "protocol").glob("*.py"):
        for dynamic, name in COUNTED.findall(path.read_text(encoding="utf-8")):
            if dynamic:
                assert name.startswith("ignored_{event."), f"{path.name}: {name}"
            else:
                assert name in listed, f"{path.name}: {name}"
    assert {*DROP_REASONS, NOT_UNDERSTOOD} <= set(schema.DROPPED_KINDS)
    assert not set(schema.STALE_KINDS) & set(schema.DROPPED_KINDS)


def test_everything_exists_from_the_start():
    registry, metrics = fresh()
    for role in BOTH:
        metrics.observer(INFO, role)
    found = scrape(registry)
    for metric in SCHEMA:
        for name in metric.series:
            for role in BOTH:
                assert found.value(name, role=role.value, backend="test") == (metric is schema.INFO), name
    for code in FailureCode:
        for stage in FailureStage:
            wanted = {"stage": stage.value, "reason": code.value}
            assert len(found.of("kv_core_rooms_concluded_total", role="decode", **wanted)) == 1
    for kind in schema.STALE_KINDS:
        assert found.of("kv_core_messages_stale_total", kind=kind)
    for kind in schema.DROPPED_KINDS:
        assert found.of("kv_core_messages_dropped_total", kind=kind)
    assert found.value("kv_core_backend_info", version="1.2.3", transport="none", role="prefill") == 1


def test_no_label_has_a_value_that_traffic_decides():
    registry, metrics = fresh(labels={"model_name": "m"})
    observer = metrics.observer(INFO, Role.PREFILL)
    bare = len(scrape(registry).all)
    for number in range(200):
        text = f"very special {number}"
        failure = Failure(FailureStage.TRANSFER, FailureCode.TIMEOUT, text, origin=text, peer=text)
        feed(observer, [event(failure=failure)])
        feed(observer, [concluded(transfer_latency_s=1.0, transfer_total_bytes=9, latency_source=text)])
    fabrics = {str(number): f"fabric {number}" for number in range(200)}
    observer.watch(lambda: {"fabrics": fabrics, "dropped": {f"news {n}": 1 for n in range(50)}})
    found = scrape(registry)
    others = sum(len(metric.buckets) + 3 for metric in (schema.WIRE_SECONDS, schema.WIRE_RATE))
    assert len(found.all) <= bare + others + 9
    assert found.value("kv_core_messages_dropped_total", kind="other") == 50
    assert found.value("kv_core_wire_seconds_count", source="other") == 200
    assert all(sample.labels["model_name"] == "m" for sample in found.all)
    assert len(found.of("kv_core_backend_info")) <= 9


def outcome(code: FailureCode) -> str:
    return "aborted" if code in (FailureCode.ABORTED_LOCAL, FailureCode.ABORTED_REMOTE) else "failed"


def test_each_outcome_is_counted_under_its_reason():
    registry, metrics = fresh()
    observer = metrics.observer(INFO, Role.DECODE)
    for stage in FailureStage:
        for code in FailureCode:
            feed(observer, [event(role=Role.DECODE, failure=Failure(stage, code, "x"))])
    feed(observer, [concluded(), event(RoomEventKind.OPENED), event(RoomEventKind.CHUNK_POSTED)])
    found = scrape(registry)
    for stage in FailureStage:
        for code in FailureCode:
            labels = {"stage": stage.value, "reason": code.value, "outcome": outcome(code)}
            assert found.value("kv_core_rooms_concluded_total", **labels) == 1
    assert found.value("kv_core_rooms_concluded_total", outcome="success") == 1
    assert found.value("kv_core_rooms_opened_total") == found.value("kv_core_chunks_posted_total") == 1


def counts(found: Samples) -> dict[str, float]:
    return {s.name: s.value for s in found.all if s.name.endswith("_count") and s.value}


def test_a_room_that_moved_nothing_adds_no_transfer():
    """A dummy rank, or a prompt that decode had already: its zeros say nothing about the network."""
    registry, metrics = fresh()
    observer = metrics.observer(INFO, Role.PREFILL)
    feed(observer, [concluded(transfer_latency_s=0.0, transfer_total_bytes=0, total_latency_s=1.0, chunks=1)])
    feed(observer, [concluded(transfer_latency_s=None, transfer_total_bytes=None), event(metric=None)])
    found = scrape(registry)
    assert counts(found) == {"kv_core_room_seconds_count": 1}
    assert found.value("kv_core_rooms_concluded_total", outcome="success") == 3


@pytest.mark.parametrize("wrong", [-0.5, float("nan"), float("inf")])
def test_what_can_not_be_is_counted_and_not_observed(wrong: float):
    registry, metrics = fresh()
    observer = metrics.observer(INFO, Role.PREFILL)
    feed(
        observer,
        [
            concluded(
                transfer_latency_s=wrong, transfer_total_bytes=7, bootstrap_latency_s=wrong, queue_latency_s=wrong,
                total_latency_s=wrong, chunks=2, latency_source="core",
            ),
            event(RoomEventKind.RELEASED, drain_latency_s=wrong),
            event(RoomEventKind.RELEASED, drain_latency_s=None),
        ],
    )  # fmt: skip
    found = scrape(registry)
    assert counts(found) == {"kv_core_room_bytes_count": 1, "kv_core_room_chunks_count": 1}
    assert found.value("kv_core_refused_samples_total") == 5


def test_labels_that_can_not_be_are_refused_with_a_sentence():
    with pytest.raises(InvalidConfig, match=r"labels names \['role'\]"):
        fresh(labels={"role": "x"})
    with pytest.raises(InvalidConfig, match=r"can't be labels"):
        fresh(labels={"__reserved": "x"})


def test_a_registry_takes_one_and_gets_it_back():
    registry, metrics = fresh()
    with pytest.raises(ValueError, match="Duplicated"):
        kv_core.observe.PrometheusMetrics(registry)
    metrics.close()
    metrics.close()
    with kv_core.observe.PrometheusMetrics(registry) as other:
        assert other.observer(INFO, Role.DECODE) is other.observer(INFO, Role.DECODE)
    assert scrape(registry).all == []


def test_no_series_tells_when_it_was_made():
    registry, metrics = fresh()
    metrics.observer(INFO, Role.PREFILL)
    assert not [sample.name for sample in scrape(registry).all if sample.name.endswith("_created")]
