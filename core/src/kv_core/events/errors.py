"""What the events' layer raises."""

from __future__ import annotations

from kv_core.contract.failures import KVCoreError


class EventError(KVCoreError):
    """Base of this layer's errors."""


class PublisherClosed(EventError, RuntimeError):
    """``publish`` after ``shutdown``."""


class SchemaError(EventError, ValueError):
    """Bytes that are no batch of events in any known profile; ``path`` says where in the batch it went wrong."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class ReplayError(EventError):
    """A replay that did not come, or not as it should."""
