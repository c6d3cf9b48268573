"""SGLang's names, buckets and units."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from core.tests.observe.support import feed, scrape
from core.tests.observe.test_schema import concluded, event
from kv_core import FailureCode, FailureStage, KVTransferMetric, Liveness, PeerEvent, Role, SGLangMetrics
from kv_core.contract.failures import Failure
from kv_core.contract.records import RoomEventKind
from kv_core.observe import RequestTimeStats
from kv_core.observe.sglang import ALIAS_LABELS, ALIASES

MIB = 2**20
PUBLISHED = {
    "sglang:kv_transfer_speed_gb_s": (0.1, 0.5, 1, 5, 10, 25, 50, 100, 200, 400),
    "sglang:kv_transfer_latency_ms": (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000),
    "sglang:kv_transfer_bootstrap_ms": (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500),
    "sglang:kv_transfer_alloc_ms": (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500),
    "sglang:kv_transfer_total_mb": (1, 5, 10, 50, 100, 500, 1000, 5000, 10000),
    "sglang:decode_deferred_kv_release_seconds": (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60),
}
"""sglang 0.5.23, srt/observability/metrics_collector.py."""


def test_the_buckets_are_the_published_ones():
    assert {metric.name: metric.buckets for metric in ALIASES if metric.buckets} == PUBLISHED


def test_figures_and_labels():
    registry = CollectorRegistry()
    with_labels = {"model_name": "m", "tp_rank": "3"}
    metrics = SGLangMetrics(Role.PREFILL, registry, labels=with_labels)
    metric = {
        "transfer_latency_s": 0.5, "transfer_total_bytes": 512 * MIB, "bootstrap_latency_s": 0.25,
        "alloc_latency_s": 0.375, "chunks": 1,
    }  # fmt: skip
    feed(metrics, [event(RoomEventKind.OPENED), concluded(**metric), concluded(transfer_total_bytes=0)])
    found = scrape(registry)
    assert found.value("sglang:kv_transfer_latency_ms_sum") == 500
    assert found.value("sglang:kv_transfer_total_mb_sum") == 512
    assert found.value("sglang:kv_transfer_speed_gb_s_sum") == 1.0
    assert found.value("sglang:kv_transfer_bootstrap_ms_sum") == 250
    assert found.value("sglang:kv_transfer_alloc_ms_sum") == 125
    assert found.value("sglang:kv_transfer_latency_ms_count") == 1
    for sample in found.all:
        assert set(ALIAS_LABELS) <= set(sample.labels)
        assert (sample.labels["model_name"], sample.labels["engine_type"], sample.labels["tp_rank"]) == (
            "m",
            "prefill",
            "3",
        )


def test_failures_recoveries_and_deferred_releases():
    registry = CollectorRegistry()
    metrics = SGLangMetrics(Role.DECODE, registry)
    failures = [
        (FailureStage.BOOTSTRAP, FailureCode.TIMEOUT), (FailureStage.HANDSHAKE, FailureCode.INCOMPATIBLE),
        (FailureStage.TRANSFER, FailureCode.PEER_LOST), (FailureStage.TRANSFER, FailureCode.ABORTED_LOCAL),
    ]  # fmt: skip
    feed(metrics, [event(role=Role.DECODE, failure=Failure(stage, code, "x")) for stage, code in failures])
    feed(metrics, [event(RoomEventKind.RELEASED, drain_latency_s=seconds) for seconds in (0.0, 2.0)])
    before = {Liveness.OK: Liveness.SUSPECT, Liveness.SUSPECT: Liveness.OK}
    feed(metrics, [PeerEvent("b", Role.DECODE, "p", state, "", 1.0, before[state]) for state in before])
    metrics.watch(lambda: {"rooms_by_phase": {"open": 1, "ready": 2, "moving": 4}, "quarantined": [{"pages": 9}]})
    found = scrape(registry)
    assert found.value("sglang:num_bootstrap_failed_reqs_total") == 2
    assert found.value("sglang:num_transfer_failed_reqs_total") == 1
    assert found.value("sglang:failed_session_recoveries_total") == 1
    assert found.value("sglang:decode_deferred_kv_release_total", outcome="released") == 1
    assert found.value("sglang:decode_deferred_kv_release_seconds_sum") == 2.0
    assert found.value("sglang:num_decode_prealloc_queue_reqs") == 3
    assert found.value("sglang:num_decode_transfer_queue_reqs") == 4
    assert found.value("sglang:num_decode_deferred_kv_release_reqs") == 1
    metrics.close()
    assert scrape(registry).all == []


def test_an_engine_may_observe_its_requests_itself():
    registry = CollectorRegistry()
    metrics = SGLangMetrics(Role.PREFILL, registry)
    stats = RequestTimeStats(Role.PREFILL, observer=metrics)
    stats.compute_and_observe_kv_transfer_metrics(KVTransferMetric(0.25, MIB))
    RequestTimeStats(Role.PREFILL, observer=metrics, aborted=True).compute_and_observe_kv_transfer_metrics(
        KVTransferMetric(0.25, MIB)
    )
    found = scrape(registry)
    assert found.value("sglang:kv_transfer_latency_ms_sum") == 250
    assert found.value("sglang:kv_transfer_speed_gb_s_sum") == pytest.approx(1 / 256)
