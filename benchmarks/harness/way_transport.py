"""A backend's transport alone, driven through the transport contract by one thread: no rooms, no messages, no checks.

Works for any transport that writes. Batches and the bytes in flight are bounded as kv-core bounds them by default.
"""

from __future__ import annotations

import base64
import threading
import uuid
from time import monotonic
from typing import Any

import msgspec
import numpy as np

from benchmarks.harness.memory import Memory, page_sets
from benchmarks.harness.window import Piece, Window
from benchmarks.harness.work import Work
from kv_core import Role, Topology, TransferConfig, TransferState, load_backend
from kv_core.contract.transport import PeerKey, TransferPlan, Transport, TransportContext
from kv_core.layout import Batch, MemoryLayout, make_batch, plan_transfer

BATCH_PART = 4
"""A batch has at most this part of the window's bytes."""
WAIT_S = 1.0
JOIN_S = 10.0


class TransportWay:
    """Both sides; ``source`` says which. ``options``: fields of ``TransferConfig``."""

    def __init__(self, memory: Memory, backend: str, *, source: bool) -> None:
        self._memory = memory
        self._backend = load_backend(backend)
        self._source = source
        self._layout = MemoryLayout.of(memory.args())
        self._config = TransferConfig()
        self._name = uuid.uuid4().hex
        self._transport: Transport | None = None
        self._server: Server | None = None
        self._plan: TransferPlan | None = None
        self._batches: dict[tuple[int, int, str], list[list[tuple[int, Batch]]]] = {}
        self._fabric = ""

    def open(self, options: dict[str, Any]) -> dict[str, Any]:
        """Start the transport and register the memory."""
        self._config = TransferConfig(**{"host": "127.0.0.1", **options})
        role = Role.PREFILL if self._source else Role.DECODE
        self._transport = self._backend.record.transport(TransportContext(role, self._name, self._config))
        self._transport.register_memory(self._layout.regions())
        told = (self._name, self._layout.to_wire(), self._transport.local_descriptor())
        return {"told": base64.b64encode(msgspec.msgpack.encode(told)).decode()}

    def connect(self, told: dict[str, Any]) -> None:
        """Get to know the receiver; the receiver's transport gets the thread that drives it from now on."""
        transport = self._transport
        assert transport is not None, "open() comes first"
        if not self._source:
            self._server = Server(transport)
            self._server.start()
            return
        name, layout, descriptor = msgspec.msgpack.decode(base64.b64decode(told["told"]))
        remote, place = MemoryLayout.from_wire(layout), Topology()
        self._plan = plan_transfer(self._layout, remote, local_topology=place, remote_topology=place)
        peer = PeerKey(name, 1)
        transport.add_peer(peer, descriptor)
        self._prepared = transport.prepare(peer, self._plan)
        self._fabric = transport.describe(peer)

    def run(self, work: Work) -> dict[str, Any]:
        """Each room is as many submissions as kv-core makes of it; the receiving side has nothing to do."""
        if not self._source:
            return {}
        slots = self._made(work)
        start = monotonic()
        self.move(Window(work.rooms, work.concurrency, slots, self._config.window_bytes))
        return {"start": start, "end": monotonic(), "fabric": self._fabric}

    def move(self, window: Window[Batch]) -> None:
        """Post whatever may be posted, wait, until every room has ended."""
        transport = self._transport
        assert transport is not None, "open() comes first"
        in_flight: dict[int, tuple[Any, Piece[Batch]]] = {}
        while not window.over:
            while (piece := window.take()) is not None:
                transfer = transport.submit(self._prepared, piece.what)
                in_flight[id(transfer)] = (transfer, piece)
            ended = False
            for record in list(transport.progress([transfer for transfer, _ in in_flight.values()])):
                if record.state is TransferState.PENDING:
                    continue
                if record.state is not TransferState.DONE:
                    raise RuntimeError(f"a transfer failed: {record.error}")
                _, piece = in_flight.pop(id(record.transfer))
                transport.release(record.transfer)
                window.ended(piece)
                ended = True
            if not ended:
                transport.wait(WAIT_S)

    def _made(self, work: Work) -> list[list[tuple[int, Batch]]]:
        key = (work.pages, work.concurrency, work.pattern)
        if key not in self._batches:
            assert self._plan is not None, "connected"
            pool = self._memory.shape.pages
            theirs = self._plan.remote_regions[0].nbytes // self._memory.shape.item_bytes
            sources = page_sets(pool, work.pages, work.concurrency, work.pattern, 1)
            targets = page_sets(theirs, work.pages, work.concurrency, work.pattern, 2)
            self._batches = {
                key: [
                    self._split(make_batch(self._plan, (mine.astype(np.uint64), other.astype(np.uint64), None)))
                    for mine, other in zip(sources, targets, strict=True)
                ]
            }
        return self._batches[key]

    def _split(self, whole: Batch) -> list[tuple[int, Batch]]:
        config = self._config
        return [(b.nbytes, b) for b in whole.split(config.max_batch_descriptors, config.window_bytes // BATCH_PART)]

    def close(self) -> None:
        """Let go of everything."""
        if self._server is not None:
            self._server.end()
        elif self._transport is not None:
            self._transport.close()


class Server:
    """The receiving side's owner thread: some engines land nothing unless somebody drives them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bench-serve")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._transport.wait(WAIT_S)
        finally:
            self._transport.close()

    def end(self) -> None:
        """End the thread, which closes the transport."""
        self._stop.set()
        self._transport.wake()
        self._thread.join(JOIN_S)
