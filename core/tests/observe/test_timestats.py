"""Request time stats: durations, figures, their units, and what is never observed."""

from __future__ import annotations

import math

import pytest

from kv_core import KVTransferMetric, RequestTimeStats, Role, duration_between
from kv_core.observe import wire_rate

MIB, GIB = 2**20, 2**30


class Collector:
    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def observe_kv_transfer_metrics(self, *, latency_ms: float, total_mb: float, speed_gb_s: float) -> None:
        self.seen.append({"latency_ms": latency_ms, "total_mb": total_mb, "speed_gb_s": speed_gb_s})


def stats(role: Role = Role.PREFILL, **more: object) -> tuple[RequestTimeStats, Collector]:
    collector = Collector()
    made = RequestTimeStats(role, observer=collector)
    for name, value in more.items():
        assert hasattr(made, name)
        setattr(made, name, value)
    return made, collector


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (1.0, 3.5, 2.5),
        (0.0, 0.0, 0.0),
        (5.0, 3.0, 0.0),
        (None, 3.0, None),
        (1.0, None, None),
        (None, None, None),
        (math.nan, 1.0, None),
        (0.0, math.inf, None),
        (-4.0, -1.0, 3.0),
    ],
)
def test_a_duration_is_never_negative_and_not_known_without_both_ends(start, end, expected):
    assert duration_between(start, end) == expected


def test_units_are_milliseconds_mib_and_gib_per_second():
    made, collector = stats()
    found = made.compute_and_observe_kv_transfer_metrics(KVTransferMetric(0.25, 512 * MIB))
    assert found == {"latency_ms": 250.0, "total_mb": 512.0, "speed_gb_s": 2.0}
    assert collector.seen == [found]
    # Ten decimal gigabytes a second are 9.31 of what SGLang calls a GB.
    ten = made.compute_and_observe_kv_transfer_metrics(KVTransferMetric(1.0, 10_000_000_000))
    assert ten is not None
    assert ten["speed_gb_s"] * GIB == pytest.approx(10e9)
    assert wire_rate(KVTransferMetric(1.0, 10_000_000_000)) == 10e9


def test_the_backends_latency_comes_before_the_queue_times():
    made, _ = stats(prefill_transfer_queue_entry_time=1.0, prefill_kv_transfer_finish_time=9.0)
    found = made.compute_and_observe_kv_transfer_metrics(KVTransferMetric(0.5, GIB))
    assert found is not None
    assert found["latency_ms"] == 500.0


@pytest.mark.parametrize(
    ("role", "start", "end"),
    [
        (Role.PREFILL, "prefill_transfer_queue_entry_time", "prefill_kv_transfer_finish_time"),
        (Role.DECODE, "decode_transfer_queue_entry_time", "wait_queue_entry_time"),
    ],
)
def test_queue_times_stand_in_only_where_both_exist_in_this_order(role, start, end):
    metric = KVTransferMetric(transfer_total_bytes=GIB)
    made, collector = stats(role, **{start: 10.0, end: 10.5})
    found = made.compute_and_observe_kv_transfer_metrics(metric)
    assert found == {"latency_ms": 500.0, "total_mb": 1024.0, "speed_gb_s": 2.0}
    for missing in ({start: 10.0}, {end: 10.5}, {}, {start: 10.5, end: 10.0}):
        made, collector = stats(role, completion_time=99.0, **missing)
        assert made.compute_and_observe_kv_transfer_metrics(metric) is None
        assert collector.seen == []


@pytest.mark.parametrize(
    "metric",
    [
        KVTransferMetric(),
        KVTransferMetric(transfer_latency_s=1.0),
        KVTransferMetric(transfer_latency_s=-1.0, transfer_total_bytes=5),
        KVTransferMetric(transfer_latency_s=math.nan, transfer_total_bytes=5),
        KVTransferMetric(transfer_latency_s=1.0, transfer_total_bytes=-5),
    ],
)
def test_what_is_not_known_is_none_and_not_observed(metric):
    made, collector = stats(prefill_transfer_queue_entry_time=1.0, prefill_kv_transfer_finish_time=2.0)
    assert made.compute_and_observe_kv_transfer_metrics(metric) is None
    assert collector.seen == []
    assert wire_rate(metric) is None


@pytest.mark.parametrize("what", ["warm_up", "dummy", "aborted"])
def test_warm_up_aborted_and_dummy_are_not_observed(what):
    made, collector = stats(Role.PREFILL, **{what: True})
    assert made.compute_and_observe_kv_transfer_metrics(KVTransferMetric(1.0, GIB)) is None
    assert collector.seen == []


def test_nothing_in_no_time_has_no_infinite_speed():
    made, _ = stats()
    assert made.compute_and_observe_kv_transfer_metrics(KVTransferMetric(0.0, 0)) == {
        "latency_ms": 0.0, "total_mb": 0.0, "speed_gb_s": 0.0,
    }  # fmt: skip
    assert wire_rate(KVTransferMetric(0.0, 7)) is None
    assert wire_rate(KVTransferMetric(1.0, 0)) is None


def test_the_log_line_of_each_role():
    made, _ = stats(
        prefill_bootstrap_queue_entry_time=1.0, bootstrap_done_time=1.5, wait_queue_entry_time=2.0,
        forward_entry_time=2.25, completion_time=4.25,
    )  # fmt: skip
    made.compute_and_observe_kv_transfer_metrics(KVTransferMetric(0.012345, MIB))
    assert made.convert_to_duration() == (
        "bootstrap_queue_duration=1000.00ms, bootstrap=500.00ms, alloc_wait=500.00ms, queue_duration=250.00ms, "
        "forward_duration=2000.00ms, start=1.000, transfer_latency=12.345ms, transfer_speed=0.08GiB/s, "
        "transfer_total=1.00MiB"
    )
    made, _ = stats(Role.DECODE, decode_prealloc_queue_entry_time=1.0, decode_transfer_queue_entry_time=1.25)
    assert made.convert_to_duration() == (
        "prealloc_queue_duration=250.00ms, bootstrap=n/a, alloc_wait=n/a, transfer_duration=n/a, queue_duration=n/a, "
        "forward_duration=n/a, start=1.000"
    )
    assert "-" not in stats(wait_queue_entry_time=5.0, forward_entry_time=1.0)[0].convert_to_duration()
