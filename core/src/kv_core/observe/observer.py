"""What one backend's managers in one role are counted with: told events, and reading their snapshots when asked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import Counter, Histogram

from kv_core.contract.enums import FailureCode, Liveness, Role
from kv_core.contract.failures import Failure
from kv_core.contract.records import BackendInfo, KVTransferMetric, PeerEvent, RoomEvent, RoomEventKind
from kv_core.observe import schema
from kv_core.observe.durations import known
from kv_core.observe.families import Families
from kv_core.observe.snapshots import Watch, Watches
from kv_core.observe.timestats import wire_rate


class MetricsObserver:
    """Get it from ``PrometheusMetrics.observer`` and give it to ``create_manager(..., observers=[it])``.

    One observer serves any number of managers of its backend and role. May be used from any thread.
    """

    def __init__(self, families: Families, backend: BackendInfo, role: Role, core_version: str) -> None:
        self._families = families
        self._base = (backend.name, role.value)
        self._role = role
        self._lock = threading.Lock()
        count, histogram = self._count, self._histogram
        self._opened, self._posted, self._bytes = (
            count(schema.OPENED), count(schema.POSTED), count(schema.TRANSFERRED),
        )  # fmt: skip
        self._refused = count(schema.REFUSED)
        self._succeeded = count(schema.CONCLUDED, schema.SUCCESS, schema.NONE, schema.NONE)
        self._failed = {labels[1:]: count(schema.CONCLUDED, *labels) for labels in schema.failure_labels()}
        self._joined, self._suspected, self._recovered = (
            count(schema.JOINED), count(schema.SUSPECTED), count(schema.RECOVERED),
        )  # fmt: skip
        self._lost, self._unmet = (
            {code: count(metric, code.value) for code in FailureCode} for metric in (schema.LOST, schema.UNMET)
        )
        self._wire = {source: histogram(schema.WIRE_SECONDS, source) for source in schema.SOURCES}
        self._rate = {source: histogram(schema.WIRE_RATE, source) for source in schema.SOURCES}
        self._bootstrap, self._queue, self._drain = (
            histogram(schema.BOOTSTRAP_SECONDS), histogram(schema.QUEUE_SECONDS), histogram(schema.DRAIN_SECONDS),
        )  # fmt: skip
        self._total, self._sizes, self._chunks = (
            histogram(schema.ROOM_SECONDS), histogram(schema.ROOM_BYTES), histogram(schema.ROOM_CHUNKS),
        )  # fmt: skip
        self._watches = Watches(families, self._base, (backend.version, core_version))

    def _count(self, metric: schema.Metric, *own: str) -> Counter:
        return self._families.counter(metric, self._base, *own)

    def _histogram(self, metric: schema.Metric, *own: str) -> Histogram:
        return self._families.histogram(metric, self._base, *own)

    # -- events ----------------------------------------------------------------------------------------------------

    def kv_room_event(self, event: RoomEvent) -> None:
        """See ``hookspecs.kv_room_event``."""
        if event.kind is RoomEventKind.OPENED:
            self._opened.inc()
        elif event.kind is RoomEventKind.CHUNK_POSTED:
            self._posted.inc()
        elif event.kind is RoomEventKind.RELEASED:
            self._take(self._drain, event.drain_latency_s)
        elif event.failure is not None:
            self._failure(event.failure)
        else:
            self._success(event.metric or KVTransferMetric())

    def _failure(self, failure: Failure) -> None:
        self._failed[failure.stage.value, failure.code.value].inc()

    def _success(self, metric: KVTransferMetric) -> None:
        self._succeeded.inc()
        self._take(self._bootstrap, metric.bootstrap_latency_s)
        self._take(self._queue, metric.queue_latency_s)
        self._take(self._total, metric.total_latency_s)
        nbytes = metric.transfer_total_bytes
        if not nbytes:
            return  # a rank or a prefix that needs no transfer is none: its zeros would only make the others look good
        if not self._take(self._sizes, nbytes):
            return
        self._bytes.inc(nbytes)
        self._take(self._chunks, metric.chunks)
        source = metric.latency_source
        if source not in schema.SOURCES:  # decode has it from its peer
            source = schema.OTHER
            self._learn(source)
        self._take(self._wire[source], metric.transfer_latency_s)
        self._take(self._rate[source], wire_rate(metric))

    def _learn(self, source: str) -> None:
        with self._lock:
            if source not in self._wire:
                self._rate[source] = self._histogram(schema.WIRE_RATE, source)
                self._wire[source] = self._histogram(schema.WIRE_SECONDS, source)

    def _take(self, histogram: Histogram, value: float | None) -> bool:
        """Observe a value if there is one; one that can't be is counted instead."""
        if value is None:
            return False
        if not known(value):
            self._refused.inc()
            return False
        histogram.observe(value)
        return True

    def kv_peer_event(self, event: PeerEvent) -> None:
        """See ``hookspecs.kv_peer_event``."""
        if event.liveness is Liveness.SUSPECT:
            self._suspected.inc()
        elif event.liveness is Liveness.OK:
            (self._joined if event.before is None else self._recovered).inc()
        else:
            code = event.code or FailureCode.PEER_LOST
            (self._unmet if event.before is None else self._lost)[code].inc()

    # -- snapshots -------------------------------------------------------------------------------------------------

    def watch(
        self, snapshot: Callable[[], Mapping[str, Any]], health: Callable[[], Mapping[str, Any]] | None = None
    ) -> Watch:
        """Read these (``manager.snapshot`` and ``manager.health``) at each scrape, until the returned watch is ended."""
        return self._watches.add(snapshot, health)

    def refresh(self) -> None:
        """Read them now. An exception of theirs is counted and logged, and the others are still read."""
        self._watches.refresh(logging.getLogger("kv_core.observe"))
