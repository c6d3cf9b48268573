"""What is exported: every metric's name, kind, labels, buckets and meaning. One schema for every backend.

Base units only (seconds, bytes). Each metric carries the labels ``backend`` and ``role``, the constant labels that
``PrometheusMetrics`` was given, and those that stand here. No label has a value that traffic decides: all come from
enums, from the lists in this module, or are capped (``transport``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kv_core.contract.enums import FailureCode, FailureStage
from kv_core.protocol.lifecycle import Event, Phase

BASE_LABELS = ("backend", "role")
OTHER = "other"
"""Stands for a label's value that is in none of the lists."""
NONE = "none"
"""Stands for a label's value that does not apply."""

SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0,
)  # fmt: skip
"""Up to the longest deadline (``bootstrap_timeout_s`` and others: 300 s)."""
WHOLE_SECONDS = (*SECONDS, 600.0, 900.0)
"""A room may spend three deadlines one after the other."""
BYTES = tuple(float(1 << exponent) for exponent in range(10, 40, 2))
"""1 KiB to 256 GiB, in steps of four."""
BYTES_PER_SECOND = (
    1e6, 1e7, 5e7, 1e8, 2.5e8, 5e8, 1e9, 2.5e9, 5e9, 1e10, 2.5e10, 5e10, 1e11, 2e11, 4e11,
)  # fmt: skip
CHUNKS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)

SOURCES = ("core", "engine")
"""Who measured the time on the wire: core, from submission to completion, or the backend's engine itself."""
STAGES = tuple(stage.value for stage in FailureStage)
REASONS = tuple(code.value for code in FailureCode)
SUCCESS, ABORTED, FAILED = "success", "aborted", "failed"
ABORTS = (FailureCode.ABORTED_LOCAL, FailureCode.ABORTED_REMOTE)
"""Codes of a room that somebody did not want any more: nothing is wrong with the transfer."""
ROOM_STATES = tuple(phase.value for phase in Phase)
"""The phases of both sides; success and failed are rooms that have ended and were not cleared yet."""

STALE_KINDS = (
    "stale_packets", "stale_messages", "stale_chunks", "duplicate_packets", "late_failures", "late_verdicts", "early_expired",
    "ignored_init", "ignored_sends", "ignored_offers", *(f"ignored_{event.name.lower()}" for event in Event),
)  # fmt: skip
"""Late, doubled and superseded news: they change nothing, and some are normal after an abort or a restart."""
DROPPED_KINDS = (
    "closed", "too_long", "bad_endpoint", "too_many_connections", "queue_full", "unresolved", "evicted", "wrong_way",
    "unroutable", "no_handshake", "not_two_frames", "not_understood", "unexpected_packets", "unexpected_messages", "misaddressed_hellos",
    "refused_handshakes", "dropped_chunks", "stray_records", "bad_traceparents",
)  # fmt: skip
"""What was thrown away because it could not be sent, or could not be what it said it was."""
OWN_COUNTERS = {
    "retransmissions": "kv_core_retransmissions",
    "drain_timeouts": "kv_core_drain_timeouts",
    "lost_submissions": "kv_core_lost_submissions",
}
"""Counts of the snapshot that are metrics of their own."""


class Kind(Enum):
    """Prometheus's kinds."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One metric. ``name`` is without the suffixes that the exposition adds (``_total``, ``_bucket``, ...)."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    multiprocess: str = "livesum"
    """How several processes' values of a gauge become one."""

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which its samples are scraped."""
        if self.kind is Kind.COUNTER:
            return (f"{self.name}_total",)
        if self.kind is Kind.HISTOGRAM:
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str, multiprocess: str = "livesum") -> Metric:
    return Metric(name, Kind.GAUGE, text, labels, multiprocess=multiprocess)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(name, Kind.HISTOGRAM, text, labels, buckets)


WIRE_SECONDS = _histogram(
    "kv_core_wire_seconds",
    "Time on the network of a room that succeeded: the union of its chunks' spans from submission to completion, "
    "queueing left out.",
    SECONDS, "source",
)  # fmt: skip
WIRE_RATE = _histogram(
    "kv_core_wire_bytes_per_second",
    "Bytes of a room that succeeded, by its time on the network.",
    BYTES_PER_SECOND,
    "source",
)
BOOTSTRAP_SECONDS = _histogram(
    "kv_core_bootstrap_seconds", "From opening a room that succeeded until its peers were known.", SECONDS
)
QUEUE_SECONDS = _histogram(
    "kv_core_queue_wait_seconds",
    "Of a room that succeeded. Prefill: from knowing decode's pages to the first submission. Decode: from knowing the "
    "peers until prefill took the pages.",
    SECONDS,
)
DRAIN_SECONDS = _histogram(
    "kv_core_drain_seconds", "From a room's end, good or bad, until its pages were proven safe to use again.", SECONDS
)
ROOM_SECONDS = _histogram("kv_core_room_seconds", "From opening a room to its success.", WHOLE_SECONDS)
ROOM_BYTES = _histogram("kv_core_room_bytes", "Bytes that landed for a room that succeeded.", BYTES)
ROOM_CHUNKS = _histogram("kv_core_room_chunks", "Chunks in which a room that succeeded was sent.", CHUNKS)

OPENED = _counter("kv_core_rooms_opened", "Rooms opened.")
CONCLUDED = _counter(
    "kv_core_rooms_concluded",
    "Rooms that ended: outcome success, aborted (somebody did not want it any more) or failed, with stage and reason.",
    "outcome", "stage", "reason",
)  # fmt: skip
TRANSFERRED = _counter("kv_core_transferred_bytes", "Bytes that landed for rooms that succeeded.")
POSTED = _counter("kv_core_chunks_posted", "Chunks handed to the transport, those of failed rooms included.")
DROPPED = _counter("kv_core_messages_dropped", "Messages and records thrown away, by kind.", "kind")
STALE = _counter("kv_core_messages_stale", "Late, doubled or superseded messages and calls, by kind.", "kind")
JOINED = _counter("kv_core_peers_joined", "Peers with which a session was begun.")
SUSPECTED = _counter("kv_core_peers_suspected", "Peers that became suspect: they get no new rooms.")
RECOVERED = _counter("kv_core_peers_recovered", "Suspect peers that answered again.")
LOST = _counter("kv_core_peers_lost", "Sessions that ended, by reason; closed is a peer that said farewell.", "reason")
UNMET = _counter("kv_core_peers_unmet", "Peers that rooms waited for and no session could be begun with.", "reason")
RETRANSMISSIONS = _counter("kv_core_retransmissions", "Control messages sent again because nobody acknowledged them.")
DRAIN_TIMEOUTS = _counter(
    "kv_core_drain_timeouts", "Ended rooms whose writes were not proven to have ended within draining_timeout_s."
)
LOST_SUBMISSIONS = _counter("kv_core_lost_submissions", "Submissions of which the transport never said what became.")
EVENTS_DROPPED = _counter(
    "kv_core_observer_events_dropped", "Events that slow observers missed: while this grows, the other counters lag."
)
REFUSED = _counter(
    "kv_core_refused_samples", "Measurements that were no finite number of at least 0, and were not taken."
)
SCRAPE_ERRORS = _counter("kv_core_snapshot_errors", "Snapshots that a manager could not give.")

ROOMS = _gauge("kv_core_rooms", "Rooms in the manager's table, by state.", "state")
IN_FLIGHT = _gauge("kv_core_transfers_in_flight", "Transfers that the transport took and that may still move bytes.")
BYTES_IN_FLIGHT = _gauge("kv_core_bytes_in_flight", "Bytes of these transfers.")
QUARANTINED_PAGES = _gauge("kv_core_quarantined_pages", "Pages of ended rooms that may still be written or read.")
QUARANTINED_ROOMS = _gauge("kv_core_quarantined_rooms", "Ended rooms whose pages may still be written or read.")
QUEUED = _gauge("kv_core_queued_chunks", "Chunks that wait in the transfer queues.")
PARKED = _gauge("kv_core_parked_chunks", "Those of them whose source is not ready to be read.")
PEERS = _gauge("kv_core_peers", "Peers with a session, or being greeted.")
LEASES = _gauge("kv_core_leases", "Rooms that are kept alive in a queue by the other side's interest.")
DEAD_THREADS = _gauge("kv_core_dead_threads", "Threads of the manager that have ended although it is open.")
INFO = _gauge(
    "kv_core_backend_info", "1 for what is in use: the backend's and core's version, and the transport as it says itself.",
    "version", "core_version", "transport", multiprocess="livemax",
)  # fmt: skip

GAUGES = (IN_FLIGHT, BYTES_IN_FLIGHT, QUARANTINED_PAGES, QUARANTINED_ROOMS, QUEUED, PARKED, PEERS, LEASES, DEAD_THREADS)
"""Gauges without labels of their own, which a snapshot gives one number for."""
SCHEMA: tuple[Metric, ...] = (
    WIRE_SECONDS, WIRE_RATE, BOOTSTRAP_SECONDS, QUEUE_SECONDS, DRAIN_SECONDS, ROOM_SECONDS, ROOM_BYTES, ROOM_CHUNKS,
    OPENED, CONCLUDED, TRANSFERRED, POSTED, DROPPED, STALE, JOINED, SUSPECTED, RECOVERED, LOST, UNMET, RETRANSMISSIONS,
    DRAIN_TIMEOUTS, LOST_SUBMISSIONS, EVENTS_DROPPED, REFUSED, SCRAPE_ERRORS, ROOMS, *GAUGES, INFO,
)  # fmt: skip


def failure_labels() -> list[tuple[str, str, str]]:
    """Every (outcome, stage, reason) of a room that did not succeed."""
    aborts = {code.value for code in ABORTS}
    return [(ABORTED if reason in aborts else FAILED, stage, reason) for stage in STAGES for reason in REASONS]
