"""SGLang's metric names and buckets as an alias set, so that dashboards and alerts that exist go on working.

Names, labels, buckets and units are those of SGLang 0.5.23 (``sglang.srt.observability.metrics_collector``): its MB is
MiB and its GB/s is GiB/s, and here, too. What differs: every number is measured by core, the same for each backend, and
``kv_transfer_latency_ms`` is the time on the network over all chunks (there it is, for most backends, the time of the
last chunk). Not here, because core has nothing that means the same: ``num_prefill_retries``,
``num_decode_host_receive_*`` and the ``*_token_usage`` gauges, which are the engine's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from kv_core.contract.enums import FailureStage, Liveness, Role
from kv_core.contract.records import KVTransferMetric, PeerEvent, RoomEvent, RoomEventKind
from kv_core.observe.durations import MS_PER_S, known
from kv_core.observe.families import Families
from kv_core.observe.figures import read_figures
from kv_core.observe.schema import ABORTS, QUARANTINED_ROOMS, Kind, Metric
from kv_core.observe.timestats import RequestTimeStats

ALIAS_LABELS = ("model_name", "engine_type", "tp_rank", "pp_rank", "moe_ep_rank")
LATENCY_MS = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0)
STAGE_MS = LATENCY_MS[:-1]


def _histogram(name: str, text: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(f"sglang:{name}", Kind.HISTOGRAM, text, (), buckets)


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"sglang:{name}", Kind.COUNTER, text, labels)


def _gauge(name: str, text: str) -> Metric:
    return Metric(f"sglang:{name}", Kind.GAUGE, text, multiprocess="mostrecent")


SPEED = _histogram(
    "kv_transfer_speed_gb_s",
    "Speed of a transfer in GiB/s.",
    (0.1, 0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 400.0),
)
LATENCY = _histogram("kv_transfer_latency_ms", "Time on the network of a request's transfer in ms.", LATENCY_MS)
BOOTSTRAP = _histogram("kv_transfer_bootstrap_ms", "From opening a room until its peers were known, in ms.", STAGE_MS)
ALLOC = _histogram(
    "kv_transfer_alloc_ms", "From knowing the peers until both sides had named their pages, in ms.", STAGE_MS
)
TOTAL = _histogram(
    "kv_transfer_total_mb", "Size of a transfer in MiB.", (1.0, 5.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0, 10000.0)
)
DEFERRED_SECONDS = _histogram(
    "decode_deferred_kv_release_seconds", "How long the pages of a failed room waited for their release.",
    (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0),
)  # fmt: skip
DEFERRED = _counter("decode_deferred_kv_release", "Releases that had to wait.", "outcome")
BOOTSTRAP_FAILED = _counter("num_bootstrap_failed_reqs", "Requests that failed before their transfer began.")
TRANSFER_FAILED = _counter("num_transfer_failed_reqs", "Requests whose transfer failed.")
RECOVERIES = _counter("failed_session_recoveries", "Suspect peers that answered again.")
PREFILL_BOOTSTRAP_QUEUE = _gauge("num_prefill_bootstrap_queue_reqs", "Rooms that wait for decode.")
PREFILL_INFLIGHT_QUEUE = _gauge("num_prefill_inflight_queue_reqs", "Rooms whose bytes move, or are to be confirmed.")
DECODE_PREALLOC_QUEUE = _gauge("num_decode_prealloc_queue_reqs", "Rooms that wait for prefill, or for pages.")
DECODE_TRANSFER_QUEUE = _gauge("num_decode_transfer_queue_reqs", "Rooms whose pages are named and not all there.")
DECODE_DEFERRED = _gauge("num_decode_deferred_kv_release_reqs", "Ended rooms whose pages may not be released yet.")

ALIASES = (
    SPEED, LATENCY, BOOTSTRAP, ALLOC, TOTAL, DEFERRED_SECONDS, DEFERRED, BOOTSTRAP_FAILED, TRANSFER_FAILED, RECOVERIES,
    PREFILL_BOOTSTRAP_QUEUE, PREFILL_INFLIGHT_QUEUE, DECODE_PREALLOC_QUEUE, DECODE_TRANSFER_QUEUE, DECODE_DEFERRED,
)  # fmt: skip
QUEUES: dict[Role, dict[Metric, tuple[str, ...]]] = {
    Role.PREFILL: {PREFILL_BOOTSTRAP_QUEUE: ("open",), PREFILL_INFLIGHT_QUEUE: ("moving", "confirming")},
    Role.DECODE: {DECODE_PREALLOC_QUEUE: ("open", "ready"), DECODE_TRANSFER_QUEUE: ("offered", "moving", "verifying")},
}
"""Which phases of rooms stand in which of SGLang's queues."""


class SGLangMetrics(Collector):
    """One manager's numbers under SGLang's names. Give it to ``create_manager(..., observers=[it])``.

    ``labels``: values for ``ALIAS_LABELS``; what is missing is "" (``engine_type``: the role). ``observe_kv_transfer_metrics``
    takes figures from ``RequestTimeStats`` instead, for engines that observe their requests themselves: then do not
    make it an observer as well, or each transfer counts twice. SGLang's names say nothing of the backend, so a registry
    takes one of these: one manager in a process. May be used from any thread.
    """

    def __init__(
        self, role: Role, registry: CollectorRegistry | None = None, *, labels: Mapping[str, str] | None = None
    ) -> None:
        self._role = Role(role)
        values = dict.fromkeys(ALIAS_LABELS, "") | {"engine_type": self._role.value} | dict(labels or {})
        self._families = made = Families(ALIASES, values, ())
        self._speed, self._latency, self._total, self._bootstrap, self._alloc, self._deferred = (
            made.histogram(metric, ()) for metric in (SPEED, LATENCY, TOTAL, BOOTSTRAP, ALLOC, DEFERRED_SECONDS)
        )
        self._bootstrap_failed, self._transfer_failed, self._recovered = (
            made.counter(metric, ()) for metric in (BOOTSTRAP_FAILED, TRANSFER_FAILED, RECOVERIES)
        )
        self._released = made.counter(DEFERRED, (), "released")
        self._queues = {made.gauge(metric, ()): states for metric, states in QUEUES[self._role].items()}
        self._waiting = made.gauge(DECODE_DEFERRED, ()) if self._role is Role.DECODE else None
        self._lock = threading.Lock()
        self._snapshot: Callable[[], Mapping[str, Any]] | None = None
        self._registry = REGISTRY if registry is None else registry
        self._registry.register(self)

    def observe_kv_transfer_metrics(self, *, latency_ms: float, total_mb: float, speed_gb_s: float) -> None:
        """One transfer: milliseconds, MiB and GiB/s."""
        self._latency.observe(latency_ms)
        self._total.observe(total_mb)
        self._speed.observe(speed_gb_s)

    def kv_room_event(self, event: RoomEvent) -> None:
        """See ``hookspecs.kv_room_event``."""
        if event.kind is RoomEventKind.RELEASED:
            self._release(event.drain_latency_s)
        elif event.kind is not RoomEventKind.CONCLUDED:
            return
        elif event.failure is None:
            self._success(event.metric or KVTransferMetric())
        elif event.failure.code not in ABORTS:
            early = event.failure.stage in (FailureStage.BOOTSTRAP, FailureStage.HANDSHAKE)
            (self._bootstrap_failed if early else self._transfer_failed).inc()

    def _success(self, metric: KVTransferMetric) -> None:
        if metric.transfer_total_bytes:  # nothing moved: a dummy rank, or a prompt that decode had
            stats = RequestTimeStats(self._role, observer=self)
            stats.compute_and_observe_kv_transfer_metrics(metric)
        bootstrap, alloc = metric.bootstrap_latency_s, metric.alloc_latency_s
        if bootstrap is not None and known(bootstrap):
            self._bootstrap.observe(bootstrap * MS_PER_S)
            if alloc is not None and alloc >= bootstrap:
                self._alloc.observe((alloc - bootstrap) * MS_PER_S)

    def _release(self, seconds: float | None) -> None:
        if self._role is Role.DECODE and seconds is not None and known(seconds) and seconds > 0:
            self._deferred.observe(seconds)
            self._released.inc()

    def kv_peer_event(self, event: PeerEvent) -> None:
        """See ``hookspecs.kv_peer_event``."""
        if event.liveness is Liveness.OK and event.before is Liveness.SUSPECT:
            self._recovered.inc()

    def watch(self, snapshot: Callable[[], Mapping[str, Any]] | None) -> None:
        """Read the queues' gauges from ``manager.snapshot`` at each scrape; None: no more."""
        with self._lock:
            self._snapshot = snapshot

    def refresh(self) -> None:
        """Read the snapshot now. Raises what it raises."""
        with self._lock:
            if self._snapshot is None:
                return
            figures = read_figures(self._snapshot())
            for gauge, states in self._queues.items():
                gauge.set(sum(figures.rooms[state] for state in states))
            if self._waiting is not None:
                self._waiting.set(figures.gauges[QUARANTINED_ROOMS])

    def collect(self) -> Iterable[Family]:
        """What a registry calls when it is scraped."""
        self.refresh()
        return self._families.collect()

    def describe(self) -> Iterable[Family]:
        """The names."""
        return self._families.describe()

    def close(self) -> None:
        """Leave the registry."""
        self._registry.unregister(self)
