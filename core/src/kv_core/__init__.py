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
    "Backend": "kv_core.registry",
    "list_backends": "kv_core.registry",
    "load_backend": "kv_core.registry",
    "AuxDataCodec": "kv_core.runtime",
    "BootstrapServer": "kv_core.runtime",
    "CommonKVManager": "kv_core.runtime",
    "CommonKVReceiver": "kv_core.runtime",
    "CommonKVSender": "kv_core.runtime",
    "TransferKVChunk": "kv_core.runtime",
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
    "BootstrapError",
    "BootstrapServer",
    "Buffer",
    "Capability",
    "CommonKVManager",
    "CommonKVReceiver",
    "CommonKVSender",
    "DigestMode",
    "Direction",
    "Failure",
    "FailureCode",
    "FailureStage",
    "IncompatibleBackend",
    "InvalidConfig",
    "KVArgs",
    "KVCoreError",
    "KVPoll",
    "KVTransferError",
    "KVTransferMetric",
    "Liveness",
    "ManagerClosed",
    "MemoryKind",
    "MessageError",
    "NotPicklable",
    "NotSupported",
    "PeerEvent",
    "Pool",
    "Region",
    "RegistrationError",
    "Role",
    "RoomEvent",
    "RoomEventKind",
    "Side",
    "ThreadingModel",
    "Topology",
    "TransferConfig",
    "TransferKVChunk",
    "TransferState",
    "TransportError",
    "__version__",
    "hookimpl",
    "list_backends",
    "load_backend",
    "parse_options",
]
