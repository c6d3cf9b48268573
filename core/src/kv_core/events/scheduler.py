"""What a scheduler calls: publishes a cache's events and the load of its rank. Names and fields are SGLang 0.5.23's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import zmq

from kv_core.events.factory import EventPublisherFactory
from kv_core.events.publisher import EventPublisher, NullEventPublisher
from kv_core.events.schema import Event, KVEventBatch
from kv_core.events.sender import unix_seconds

logger = logging.getLogger(__name__)


class KvMetrics(msgspec.Struct):
    """The load of one rank. Slots and waiting are requests, blocks are tokens (SGLang's page size is not divided out),
    usage and hit rate are 0 to 1 in spite of their names' ``perc``.
    """

    request_active_slots: int = 0
    request_total_slots: int = 0
    kv_active_blocks: int = 0
    kv_total_blocks: int = 0
    num_requests_waiting: int = 0
    gpu_cache_usage_perc: float = 0.0
    gpu_prefix_cache_hit_rate: float = 0.0
    data_parallel_rank: int = 0


class EventSource(Protocol):
    """A prefix cache that notes what happens to its blocks."""

    def take_events(self) -> list[Event]:
        """Everything since the last call, in order."""


class SchedulerKvEventsPublisher:
    """One for each scheduler; every rank may have one, but only rank 0 of TP, CP and PP says anything.

    kv_events_config: the JSON of ``--kv-events-config``; None or "" is off. attn_dp_rank: the cache's index among the
    data-parallel ranks. tree_cache: has ``take_events``. send_metrics_from_scheduler: a ZeroMQ socket (PUSH), or None.
    get_stats: answers an object with ``num_running_reqs`` and ``num_queue_reqs`` (numbers, or objects with ``total``),
    ``token_usage`` and ``cache_hit_rate``. create: makes the publisher.

    All calls by the scheduler's thread; none blocks. Raises ``InvalidConfig`` when it is made.
    """

    def __init__(
        self,
        *,
        kv_events_config: str | None,
        attn_tp_rank: int,
        attn_cp_rank: int,
        attn_dp_rank: int,
        tree_cache: EventSource,
        pp_rank: int = 0,
        dp_rank: int | None = None,
        send_metrics_from_scheduler: zmq.Socket[bytes] | None = None,
        max_running_requests: int = 0,
        max_total_num_tokens: int = 0,
        get_stats: Callable[[], Any] | None = None,
        create: Callable[[str | None, int], EventPublisher] = EventPublisherFactory.create,
        wall_clock: Callable[[], float] = unix_seconds,
    ) -> None:
        self.attn_tp_rank = attn_tp_rank
        self.attn_cp_rank = attn_cp_rank
        self.attn_dp_rank = attn_dp_rank
        self.pp_rank = pp_rank
        self.dp_rank = dp_rank
        self.tree_cache = tree_cache
        self.send_metrics_from_scheduler = send_metrics_from_scheduler
        self.max_running_requests = max_running_requests
        self.max_total_num_tokens = max_total_num_tokens
        self.get_stats = get_stats
        self.metrics_not_sent = 0
        self.enable_kv_cache_events = False
        self.kv_event_publisher: EventPublisher = NullEventPublisher(attn_dp_rank)
        self._create = create
        self._wall_clock = wall_clock
        self._encode = msgspec.msgpack.Encoder().encode
        self.init_kv_events(kv_events_config)

    def init_kv_events(self, kv_events_config: str | None) -> None:
        """Make the publisher, where this rank is the one that publishes. A publisher that was there is shut down first."""
        self.shutdown()
        self.enable_kv_cache_events = bool(
            kv_events_config and self.attn_tp_rank == 0 and self.attn_cp_rank == 0 and self.pp_rank == 0
        )
        if self.enable_kv_cache_events:
            self.kv_event_publisher = self._create(kv_events_config, self.attn_dp_rank)

    def publish_kv_events(self) -> None:
        """Publish what the cache has noted since the last call, as one batch; nothing if there is nothing."""
        if not self.enable_kv_cache_events:
            return
        events = self.tree_cache.take_events()
        if events:
            self.kv_event_publisher.publish(KVEventBatch(self._wall_clock(), events))

    def emit_kv_metrics(self) -> None:
        """Send the rank's load: one msgpack map. A peer that does not read costs the message and not the scheduler's time."""
        socket = self.send_metrics_from_scheduler
        if not self.enable_kv_cache_events or socket is None or socket.closed or self.get_stats is None:
            return
        stats = self.get_stats()
        metrics = KvMetrics(
            request_active_slots=_count(stats.num_running_reqs),
            request_total_slots=self.max_running_requests,
            kv_active_blocks=int(stats.token_usage * self.max_total_num_tokens),
            kv_total_blocks=self.max_total_num_tokens,
            num_requests_waiting=_count(stats.num_queue_reqs),
            gpu_cache_usage_perc=stats.token_usage,
            gpu_prefix_cache_hit_rate=stats.cache_hit_rate,
            data_parallel_rank=self.dp_rank if self.dp_rank is not None else 0,
        )
        try:
            socket.send(self._encode(metrics), zmq.NOBLOCK)
        except zmq.Again:
            self.metrics_not_sent += 1

    def shutdown(self) -> None:
        """Shut the publisher down and publish nothing more. Idempotent."""
        self.enable_kv_cache_events = False
        self.kv_event_publisher.shutdown()
        self.kv_event_publisher = NullEventPublisher(self.attn_dp_rank)


def _count(value: Any) -> int:
    return int(getattr(value, "total", value))
