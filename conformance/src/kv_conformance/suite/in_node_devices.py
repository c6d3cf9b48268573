"""What KV-CAP lets nodes do with memory of a device: take it, hand it to the transport, read it back without the transport."""

from __future__ import annotations

import numpy as np

from kv_conformance.harness import DeviceMemory, Harness
from kv_conformance.nodes.wire_server import WireServer
from kv_core import Buffer, KVArgs, MemoryKind, Pool
from kv_core.layout import MemoryLayout

_TAKEN: dict[int, DeviceMemory] = {}
"""By the node's server: kept until the process ends, for the transport may use it as long."""


def take_device_memory(server: WireServer, harness: type[Harness], kind: MemoryKind) -> bool:
    """Let the harness allocate a device's memory, fill it with what the node's memory holds, and register it in its place.
    False if the harness has none.
    """
    shape = server.memory.shape
    memory = harness().allocate(kind, 0, shape.nbytes)
    if memory is None:
        return False
    memory.write(0, server.memory.whole.tobytes())
    _, items, item_len = shape.kv
    buffers = (Buffer(memory.address + at, item_len, items, layer) for layer, at in enumerate(shape.offsets()["kv"]))
    server.args = KVArgs(Pool("kv", tuple(buffers), kind), model="conformance")
    server.layout = MemoryLayout.of(server.args)
    _TAKEN[id(server)] = memory
    server.transport.register_memory(server.layout.regions())
    return True


def bring_home(server: WireServer) -> None:
    """Copy what the device's memory holds into the node's own memory, where the suite looks."""
    data = _TAKEN[id(server)].read(0, server.memory.shape.nbytes)
    server.memory.whole[:] = np.frombuffer(data, np.uint8)
