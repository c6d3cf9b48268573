"""Threads, sockets and clocks: managers, senders, receivers, the control channel, transfer workers, bootstrap, monitors."""

from kv_core.protocol.chunks import TransferKVChunk
from kv_core.runtime.bootstrap import BootstrapClient, BootstrapServer
from kv_core.runtime.handles import CommonKVReceiver, CommonKVSender
from kv_core.runtime.manager import CommonKVManager, create_manager
from kv_core.runtime.transfer import AuxDataCodec, TransferEngine

__all__ = [
    "AuxDataCodec",
    "BootstrapClient",
    "BootstrapServer",
    "CommonKVManager",
    "CommonKVReceiver",
    "CommonKVSender",
    "TransferEngine",
    "TransferKVChunk",
    "create_manager",
]
