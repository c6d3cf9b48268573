"""What is read from managers' snapshots: sums, counts that outlive a manager, transports, and snapshots that fail."""

from __future__ import annotations

import logging
from typing import Any

from core.tests.observe.support import INFO, fresh, scrape
from core.tests.protocol.support import Bench
from kv_core.contract.enums import Role
from kv_core.observe.figures import read_figures


def snapshot(**more: Any) -> dict[str, Any]:
    return {
        "rooms_by_phase": {"open": 1, "moving": 2},
        "transfers": {"outstanding_transfers": 3, "outstanding_bytes": 4096, "queued_chunks": 5, "parked_chunks": 1},
        "quarantined": [{"room": 1, "life": 1, "pages": 16, "missing": ["x"]}, {"room": 2, "life": 2, "pages": 4}],
        "peers": 2,
        "leases": 1,
        "dropped": {"stale_packets": 2, "retransmissions": 3, "ignored_sends": 1},
        "control": {"dropped": {"queue_full": 4}},
        "fabrics": {"a": "rdma mlx5_0", "b": "rdma mlx5_0"},
        **more,
    }


def test_gauges_are_sums_over_the_managers_of_a_backend_and_role():
    registry, metrics = fresh()
    observer = metrics.observer(INFO, Role.PREFILL)
    with observer.watch(snapshot), observer.watch(lambda: snapshot(peers=5), lambda: {"control": {"alive": False}}):
        found = scrape(registry)
        expected = {
            "transfers_in_flight": 6, "bytes_in_flight": 8192, "queued_chunks": 10, "parked_chunks": 2,
            "quarantined_pages": 40, "quarantined_rooms": 4, "peers": 7, "leases": 2, "dead_threads": 1,
        }  # fmt: skip
        for name, value in expected.items():
            assert found.value(f"kv_core_{name}") == value, name
        assert found.value("kv_core_rooms", state="moving") == 4
        assert found.value("kv_core_rooms", state="ready") == 0
        assert found.value("kv_core_backend_info", transport="rdma mlx5_0") == 1
        assert found.value("kv_core_backend_info", transport="none") == 0
    found = scrape(registry)
    assert found.value("kv_core_quarantined_pages") == 0
    assert found.value("kv_core_backend_info", transport="none") == 1


def test_counts_grow_and_outlive_the_manager_that_they_are_from():
    registry, metrics = fresh()
    observer = metrics.observer(INFO, Role.DECODE)
    stale = {"stale_packets": 2}
    watch = observer.watch(lambda: {"dropped": stale})
    for seen in (2, 2, 9, 4):  # the last one: a manager that began anew
        stale["stale_packets"] = seen
        scrape(registry)
    assert scrape(registry).value("kv_core_messages_stale_total", kind="stale_packets") == 13
    stale["stale_packets"] = 5
    watch.stop()
    watch.stop()
    observer.watch(lambda: {"dropped": {"stale_packets": 1}})
    assert scrape(registry).value("kv_core_messages_stale_total", kind="stale_packets") == 15


def test_each_count_goes_to_its_metric():
    registry, metrics = fresh()
    health = {"observers": {"alive": True, "dropped": 7}}
    more = {"transfers": {"lost_submissions": 2, "totals": {"stray_records": 6}}}
    metrics.observer(INFO, Role.PREFILL).watch(lambda: snapshot(**more), lambda: health)
    found = scrape(registry)
    assert found.value("kv_core_messages_stale_total") == 3
    assert found.value("kv_core_messages_stale_total", kind="ignored_sends") == 1
    assert found.value("kv_core_messages_dropped_total", kind="queue_full") == 4
    assert found.value("kv_core_messages_dropped_total", kind="stray_records") == 6
    assert found.value("kv_core_retransmissions_total") == 3
    assert found.value("kv_core_lost_submissions_total") == 2
    assert found.value("kv_core_observer_events_dropped_total") == 7


def test_a_manager_that_can_not_answer_hides_no_other_and_is_logged_once(caplog):
    registry, metrics = fresh()
    observer = metrics.observer(INFO, Role.PREFILL)

    def broken() -> dict[str, Any]:
        raise RuntimeError("closed")

    observer.watch(broken)
    observer.watch(snapshot)
    with caplog.at_level(logging.WARNING, "kv_core.observe"):
        for _ in range(3):
            found = scrape(registry)
    assert found.value("kv_core_peers") == 2
    assert found.value("kv_core_snapshot_errors_total") == 3
    assert len(caplog.records) == 1
    assert "end its watch" in caplog.text


def test_a_snapshot_of_anything_gives_numbers():
    wrong = {
        "rooms_by_phase": [1], "transfers": None, "quarantined": ["x", {"pages": -4}], "peers": "many",
        "leases": float("nan"), "dropped": {"a": -1}, "fabrics": {"p": "", "q": "x" * 500 + "\n"},
    }  # fmt: skip
    for odd in ({}, wrong):
        figures = read_figures(odd, {"t": 4})
        assert all(
            value >= 0 for value in (*figures.rooms.values(), *figures.gauges.values(), *figures.counts.values())
        )
        assert all(0 < len(name) <= 64 for name in figures.transports)


def test_a_real_machines_snapshot_is_understood():
    bench = Bench()
    prefill, decode = bench.pair()
    sender, _ = bench.bound(prefill, decode)
    prefill.send(sender, 1)
    prefill.claim()
    prefill.abort(sender)
    registry, metrics = fresh()
    metrics.observer(INFO, Role.PREFILL).watch(prefill.machine.snapshot)
    metrics.observer(INFO, Role.DECODE).watch(decode.machine.snapshot)
    found = scrape(registry)
    assert found.value("kv_core_quarantined_pages", role="prefill") == 2
    assert found.value("kv_core_rooms", role="prefill", state="failed") == 1
    assert found.value("kv_core_rooms", role="decode", state="moving") == 1
    assert found.value("kv_core_peers") == 2
    assert found.value("kv_core_messages_dropped_total", kind="other") == 0
