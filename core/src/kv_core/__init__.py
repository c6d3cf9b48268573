"""kv-core: one protocol, many transports for moving KV-cache pages between prefill and decode servers.

Importing this package imports no backend, no torch, no CUDA and, until they are used, no sockets: the names that need
the runtime are loaded at first use.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from kv_core.contract.config import FAKE_BOOTSTRAP_HOST, TransferConfig
from kv_core.contract.enums import (
    Capability,
    DigestMode,
    Direction,
    FailureCode,
    FailureStage,
    KVPoll,
    Liveness,
    MemoryKind,
    Role,
    Side,
    ThreadingModel,
    TransferState,
)
from kv_core.contract.failures import (
    BackendError,
    BackendLoadError,
    BackendNotFound,
    BootstrapError,
    Failure,
    IncompatibleBackend,
    InvalidConfig,
    KVCoreError,
    KVTransferError,
    ManagerClosed,
    MessageError,
    NotPicklable,
    NotSupported,
    RegistrationError,
    TransportError,
)
from kv_core.contract.hookspecs import hookimpl
from kv_core.contract.interfaces import BaseKVManager, BaseKVReceiver, BaseKVSender
from kv_core.contract.items import ItemBlock, ItemLayout
from kv_core.contract.memory import Buffer, KVArgs, Pool, Region, Topology
from kv_core.contract.options import parse_options
from kv_core.contract.records import (
    KV_CORE_API,
    BackendInfo,
    BackendRecord,
    KVTransferMetric,
    PeerEvent,
    RoomEvent,
    RoomEventKind,
)

if TYPE_CHECKING:
    from kv_core.events import (
        AllBlocksCleared,
        BlockRemoved,
        BlockStored,
        EventPublisher,
        EventPublisherFactory,
        KVEventBatch,
        KvMetrics,
        NullEventPublisher,
        SchedulerKvEventsPublisher,
        ZmqEventPublisher,
    )
    from kv_core.observe import (
        FlightRecorder,
        MetricsServer,
        OpenTelemetryObserver,
        PrometheusMetrics,
        RequestTimeStats,
        SGLangMetrics,
        duration_between,
    )
    from kv_core.registry import Backend, list_backends, load_backend
    from kv_core.runtime import (
        AuxDataCodec,
        BootstrapServer,
        CommonKVManager,
        CommonKVReceiver,
        CommonKVSender,
        TransferKVChunk,
    )

__version__ = version("kv-core")

_LAZY = {
    "AllBlocksCleared": "kv_core.events",
    "BlockRemoved": "kv_core.events",
    "BlockStored": "kv_core.events",
    "EventPublisher": "kv_core.events",
    "EventPublisherFactory": "kv_core.events",
    "KVEventBatch": "kv_core.events",
    "KvMetrics": "kv_core.events",
    "NullEventPublisher": "kv_core.events",
    "SchedulerKvEventsPublisher": "kv_core.events",
    "ZmqEventPublisher": "kv_core.events",
    "Backend": "kv_core.registry",
    "list_backends": "kv_core.registry",
    "load_backend": "kv_core.registry",
    "AuxDataCodec": "kv_core.runtime",
    "BootstrapServer": "kv_core.runtime",
    "CommonKVManager": "kv_core.runtime",
    "CommonKVReceiver": "kv_core.runtime",
    "CommonKVSender": "kv_core.runtime",
    "FlightRecorder": "kv_core.observe",
    "MetricsServer": "kv_core.observe",
    "OpenTelemetryObserver": "kv_core.observe",
    "PrometheusMetrics": "kv_core.observe",
    "RequestTimeStats": "kv_core.observe",
    "SGLangMetrics": "kv_core.observe",
    "TransferKVChunk": "kv_core.runtime",
    "duration_between": "kv_core.observe",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'kv_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "FAKE_BOOTSTRAP_HOST",
    "KV_CORE_API",
    "AllBlocksCleared",
    "AuxDataCodec",
    "Backend",
    "BackendError",
    "BackendInfo",
    "BackendLoadError",
    "BackendNotFound",
    "BackendRecord",
    "BaseKVManager",
    "BaseKVReceiver",
    "BaseKVSender",
    "BlockRemoved",
    "BlockStored",
    "BootstrapError",
    "BootstrapServer",
    "Buffer",
    "Capability",
    "CommonKVManager",
    "CommonKVReceiver",
    "CommonKVSender",
    "DigestMode",
    "Direction",
    "EventPublisher",
    "EventPublisherFactory",
    "Failure",
    "FailureCode",
    "FailureStage",
    "FlightRecorder",
    "IncompatibleBackend",
    "InvalidConfig",
    "ItemBlock",
    "ItemLayout",
    "KVArgs",
    "KVCoreError",
    "KVEventBatch",
    "KVPoll",
    "KVTransferError",
    "KVTransferMetric",
    "KvMetrics",
    "Liveness",
    "ManagerClosed",
    "MemoryKind",
    "MessageError",
    "MetricsServer",
    "NotPicklable",
    "NotSupported",
    "NullEventPublisher",
    "OpenTelemetryObserver",
    "PeerEvent",
    "Pool",
    "PrometheusMetrics",
    "Region",
    "RegistrationError",
    "RequestTimeStats",
    "Role",
    "RoomEvent",
    "RoomEventKind",
    "SGLangMetrics",
    "SchedulerKvEventsPublisher",
    "Side",
    "ThreadingModel",
    "Topology",
    "TransferConfig",
    "TransferKVChunk",
    "TransferState",
    "TransportError",
    "ZmqEventPublisher",
    "__version__",
    "duration_between",
    "hookimpl",
    "list_backends",
    "load_backend",
    "parse_options",
]
