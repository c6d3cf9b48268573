"""Publishes over ZeroMQ: a PUB socket, and a ROUTER socket for what a subscriber missed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import zmq

from kv_core.contract.failures import InvalidConfig
from kv_core.events import endpoints, topics
from kv_core.events.answers import Answers
from kv_core.events.config import KVEventsConfig
from kv_core.events.errors import PublisherClosed
from kv_core.events.numbers import END_SEQ, first_of_life
from kv_core.events.profiles import make_profile
from kv_core.events.publisher import EventPublisher
from kv_core.events.queueing import DroppingQueue
from kv_core.events.replay_server import ReplayServer
from kv_core.events.ring import ReplayRing
from kv_core.events.schema import AllBlocksCleared, EventBatch, KVEventBatch
from kv_core.events.sender import Sender, unix_seconds
from kv_core.events.sockets import pub_socket, router_socket

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 5.0


class ZmqEventPublisher(EventPublisher):
    """Binds, and starts its threads, when it is made, as SGLang's does: a port that is taken is an error at start.

    The arguments are ``KVEventsConfig``'s. ``endpoint`` and ``replay_endpoint`` (attributes) are what was really bound.
    Raises ``InvalidConfig``.
    """

    END_SEQ = END_SEQ

    def __init__(
        self,
        attn_dp_rank: int = 0,
        endpoint: str = "tcp://*:5557",
        replay_endpoint: str | None = None,
        buffer_steps: int = 10_000,
        hwm: int = 100_000,
        max_queue_size: int = 100_000,
        topic: str = "",
        *,
        bind: bool | None = None,
        format: str = "default",  # noqa: A002 - SGLang's name for it
        profile: str | None = None,
        first_seq: str = "clock",
        topic_values: Mapping[str, str] = MappingProxyType({}),
        advertise_host: str = "127.0.0.1",
    ) -> None:
        super().__init__(attn_dp_rank)
        config = KVEventsConfig(
            publisher="zmq", endpoint=endpoint, replay_endpoint=replay_endpoint, bind=bind, buffer_steps=buffer_steps,
            hwm=hwm, max_queue_size=max_queue_size, topic=topic, format=format, profile=profile, first_seq=first_seq,
            topic_values=dict(topic_values), advertise_host=advertise_host,
        )  # fmt: skip
        self._closed = False
        self._config = config
        self._queue = DroppingQueue(max_queue_size)
        # Fails here for an unknown profile, before any port is taken. Each thread has an encoder of its own.
        codec, marker_codec = make_profile(config.wire_profile), make_profile(config.wire_profile)
        self.epoch = int(unix_seconds() * 1000)
        self.first_seq = first = first_of_life(self.epoch) if first_seq == "clock" else 0
        self._ring = ReplayRing(buffer_steps, first)
        pub = self._open()
        try:
            self.topic = topics.fill(
                topic, endpoint=self._reachable(), dp_rank=attn_dp_rank, values=config.topic_values
            )
        except InvalidConfig:
            for socket in pub:
                if socket is not None:
                    socket.close(linger=0)
            raise

        def marker(event: AllBlocksCleared) -> bytes:
            return marker_codec.encode(KVEventBatch(unix_seconds(), [event], attn_dp_rank))

        name = self.topic.encode()
        self._sender = Sender(
            pub[0], self._queue, self._ring, codec, topic=name, rank=attn_dp_rank, first_seq=first, epoch=self.epoch,
            wall_clock=unix_seconds,
        )  # fmt: skip
        self._replay = None
        if pub[1] is not None:
            self._replay = ReplayServer(pub[1], Answers(self._ring, first, self.epoch, marker), topic=name)
            self._replay.start()
        self._sender.start()

    def publish(self, events: EventBatch) -> None:
        """See the base class. Where the queue is full its oldest batch is dropped, counted, and told to consumers."""
        if self._closed:
            raise PublisherClosed("this publisher has been shut down: nothing can be published any more")
        if events.attn_dp_rank is None:
            events.attn_dp_rank = self._attn_dp_rank
        self._queue.put(events)

    def shutdown(self) -> None:
        """See the base class. Waits up to 5 s for batches that have not been sent, says how many are lost after that."""
        if self._closed:
            return
        self._closed = True
        if not self._sender.stop(SHUTDOWN_TIMEOUT_S):
            logger.warning("KV events: shut down with %d batches unsent", len(self._queue))
        if self._replay is not None and not self._replay.stop(SHUTDOWN_TIMEOUT_S):
            logger.warning("KV events: the replay thread did not end within %g s", SHUTDOWN_TIMEOUT_S)

    def describe_local_source(self, block_size: int) -> dict[str, Any]:
        """``dp_rank, endpoint, topic, block_size[, replay_endpoint]`` with the ports that were really bound.

        A wildcard host is written as ``advertise_host``.
        """
        source: dict[str, Any] = {
            "dp_rank": self._attn_dp_rank, "endpoint": self._reachable(), "topic": self.topic, "block_size": block_size,
        }  # fmt: skip
        if self.replay_endpoint is not None:
            source["replay_endpoint"] = endpoints.reachable(self.replay_endpoint, self._config.advertise_host)
        return source

    def stats(self) -> dict[str, int]:
        """Counters since the start; ``queued`` and ``kept`` are as of now."""
        sender, replay = self._sender, self._replay
        return {
            "published_batches": sender.next_seq - self.first_seq, "published_events": sender.published_events,
            "lost_batches": sender.lost.batches, "lost_events": sender.lost.events,
            "unencodable_batches": sender.unencodable.batches, "queued": len(self._queue), "kept": len(self._ring),
            "replay_requests": replay.requests if replay else 0, "replayed_batches": replay.replayed if replay else 0,
            "incomplete_replays": replay.incomplete if replay else 0,
            "abandoned_replays": replay.abandoned if replay else 0,
            "troubles": sender.troubles.count + (replay.troubles.count if replay else 0),
        }  # fmt: skip

    def _open(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes] | None]:
        """Bind both sockets of this rank, or neither."""
        config, rank = self._config, self._attn_dp_rank
        wanted = endpoints.offset_endpoint_port(config.endpoint, rank)
        wanted_replay = endpoints.offset_endpoint_port(config.replay_endpoint, rank)
        context: zmq.Context[zmq.Socket[bytes]] = (
            zmq.Context.instance()
        )  # shared, so that inproc subscribers find it; never terminated here
        pub, self.endpoint = pub_socket(context, wanted, bind=endpoints.binds(wanted, config.bind), hwm=config.hwm)
        self.replay_endpoint: str | None = None
        if wanted_replay is None:
            return pub, None
        try:
            router, self.replay_endpoint = router_socket(context, wanted_replay, ring=config.buffer_steps)
        except InvalidConfig:
            pub.close(linger=0)
            raise
        return pub, router

    def _reachable(self) -> str:
        return endpoints.reachable(self.endpoint, self._config.advertise_host)
