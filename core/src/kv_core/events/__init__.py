"""KV-cache events: what happened to the blocks of a cache, told to routers. See docs/kv-events.md.

An engine uses ``SchedulerKvEventsPublisher``, or ``EventPublisherFactory`` and the events themselves. Importing this package
opens nothing.
"""

from __future__ import annotations

from kv_core.events.checker import Finding, StreamChecker
from kv_core.events.config import KVEventsConfig
from kv_core.events.consumer import Message, Subscription, replay
from kv_core.events.decode import Decoded, decode_batch
from kv_core.events.endpoints import offset_endpoint_port
from kv_core.events.errors import EventError, PublisherClosed, ReplayError, SchemaError
from kv_core.events.factory import EventPublisherFactory
from kv_core.events.hashes import from_digest, namespaced_all, to_signed, to_unsigned
from kv_core.events.numbers import epoch_of
from kv_core.events.profiles import PROFILES, WireProfile, in_namespace, make_profile
from kv_core.events.publisher import EventPublisher, NullEventPublisher
from kv_core.events.recording import Recorder, read_recording
from kv_core.events.scheduler import KvMetrics, SchedulerKvEventsPublisher
from kv_core.events.schema import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch, KVCacheEvent, KVEventBatch
from kv_core.events.zmq_publisher import ZmqEventPublisher

register_publisher = EventPublisherFactory.register_publisher

__all__ = [
    "PROFILES",
    "AllBlocksCleared",
    "BlockRemoved",
    "BlockStored",
    "Decoded",
    "EventBatch",
    "EventError",
    "EventPublisher",
    "EventPublisherFactory",
    "Finding",
    "KVCacheEvent",
    "KVEventBatch",
    "KVEventsConfig",
    "KvMetrics",
    "Message",
    "NullEventPublisher",
    "PublisherClosed",
    "Recorder",
    "ReplayError",
    "SchedulerKvEventsPublisher",
    "SchemaError",
    "StreamChecker",
    "Subscription",
    "WireProfile",
    "ZmqEventPublisher",
    "decode_batch",
    "epoch_of",
    "from_digest",
    "in_namespace",
    "make_profile",
    "namespaced_all",
    "offset_endpoint_port",
    "read_recording",
    "register_publisher",
    "replay",
    "to_signed",
    "to_unsigned",
]
