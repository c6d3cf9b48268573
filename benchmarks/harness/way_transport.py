"""A backend's transport alone, driven through the transport contract by one thread: no rooms, no messages, no checks.

Works for any transport of the ``OWNER`` model that writes.
"""

from __future__ import annotations

import base64
import uuid
from time import monotonic
from typing import Any

import msgspec
import numpy as np

from benchmarks.harness.memory import Memory, page_sets
from benchmarks.harness.work import Work
from kv_core import Role, Topology, TransferConfig, TransferState, load_backend
from kv_core.contract.transport import PeerKey, Transfer, TransferPlan, TransportContext
from kv_core.layout import Batch, MemoryLayout, make_batch, plan_transfer


class TransportWay:
    """Both sides; ``source`` says which."""

    def __init__(self, memory: Memory, backend: str, *, source: bool) -> None:
        self._memory = memory
        self._source = source
        self._layout = MemoryLayout.of(memory.args())
        role = Role.PREFILL if source else Role.DECODE
        self._name = uuid.uuid4().hex
        self._transport = load_backend(backend).record.transport(
            TransportContext(role, self._name, TransferConfig(host="127.0.0.1"))
        )
        self._plan: TransferPlan | None = None
        self._batches: dict[tuple[int, int, str], list[Batch]] = {}

    def open(self, options: dict[str, Any]) -> dict[str, Any]:
        """Register the memory."""
        self._transport.register_memory(self._layout.regions())
        told = (self._name, self._layout.to_wire(), self._transport.local_descriptor())
        return {"told": base64.b64encode(msgspec.msgpack.encode(told)).decode()}

    def connect(self, told: dict[str, Any]) -> None:
        """Get to know the receiver."""
        if not self._source:
            return
        name, layout, descriptor = msgspec.msgpack.decode(base64.b64decode(told["told"]))
        remote, place = MemoryLayout.from_wire(layout), Topology()
        self._plan = plan_transfer(self._layout, remote, local_topology=place, remote_topology=place)
        peer = PeerKey(name, 1)
        self._transport.add_peer(peer, descriptor)
        self._prepared = self._transport.prepare(peer, self._plan)

    def run(self, work: Work) -> dict[str, Any]:
        """Each room is one submission; the receiving side has nothing to do."""
        start = monotonic()
        if not self._source:
            return {"start": start, "end": start}
        batches = self._made(work)
        transport = self._transport
        in_flight: dict[int, Transfer] = {}
        start = monotonic()
        begun = 0
        while begun < work.rooms or in_flight:
            while begun < work.rooms and len(in_flight) < work.concurrency:
                transfer = transport.submit(self._prepared, batches[begun % len(batches)])
                in_flight[id(transfer)] = transfer
                begun += 1
            ended = list(transport.progress(list(in_flight.values())))
            for record in ended:
                if record.state is not TransferState.DONE:
                    raise RuntimeError(f"a transfer failed: {record.error}")
                del in_flight[id(record.transfer)]
                transport.release(record.transfer)
            if not ended:
                transport.wait(1.0)
        return {"start": start, "end": monotonic()}

    def _made(self, work: Work) -> list[Batch]:
        key = (work.pages, work.concurrency, work.pattern)
        if key not in self._batches:
            assert self._plan is not None, "connected"
            pool = self._memory.shape.pages
            theirs = self._plan.remote_regions[0].nbytes // self._memory.shape.item_bytes
            sources = page_sets(pool, work.pages, work.concurrency, work.pattern, 1)
            targets = page_sets(theirs, work.pages, work.concurrency, work.pattern, 2)
            self._batches = {
                key: [
                    make_batch(self._plan, (mine.astype(np.uint64), other.astype(np.uint64), None))
                    for mine, other in zip(sources, targets, strict=True)
                ]
            }
        return self._batches[key]

    def close(self) -> None:
        """Let go of everything."""
        self._transport.close()
