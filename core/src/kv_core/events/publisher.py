"""What a scheduler publishes to: the interface, and the one that publishes nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from kv_core.events.endpoints import offset_endpoint_port
from kv_core.events.schema import EventBatch


class EventPublisher(ABC):
    """One for each data-parallel rank: a rank has a KV cache of its own, and its batches carry its number.

    attn_dp_rank: the rank under data-parallel attention, elsewhere the data-parallel rank.
    """

    def __init__(self, attn_dp_rank: int = 0) -> None:
        self._attn_dp_rank = attn_dp_rank

    @property
    def attn_dp_rank(self) -> int:
        """The rank whose cache this is about."""
        return self._attn_dp_rank

    @abstractmethod
    def publish(self, events: EventBatch) -> None:
        """Emit a batch, in order. Never blocks. The batch belongs to the publisher from then on. By the scheduler's thread.

        Raises ``PublisherClosed`` after ``shutdown``.
        """

    @abstractmethod
    def shutdown(self) -> None:
        """Send what waits, join every thread, close every socket. Idempotent."""

    def describe_local_source(self, block_size: int) -> dict[str, Any] | None:
        """Where a subscriber on this host finds the events of this rank; None where there are none."""
        return None

    def stats(self) -> dict[str, int]:
        """Counters since the start, by name; empty where nothing is counted. By any thread."""
        return {}

    @staticmethod
    def offset_endpoint_port(endpoint: str | None, data_parallel_rank: int) -> str | None:
        """The endpoint of another rank: see ``endpoints.offset_endpoint_port``."""
        return offset_endpoint_port(endpoint, data_parallel_rank) if endpoint is not None else None


class NullEventPublisher(EventPublisher):
    """Publishes nothing: the default."""

    def publish(self, events: EventBatch) -> None:
        """Do nothing."""

    def shutdown(self) -> None:
        """Do nothing."""
