"""What runs in a node that drives a transport directly, as core's owner thread does: no manager, no rooms, no messages."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from queue import SimpleQueue
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

from kv_conformance.nodes.memory import Memory, Shape
from kv_core import (
    Direction,
    Region,
    Role,
    ThreadingModel,
    Topology,
    TransferConfig,
    TransferState,
    TransportError,
    load_backend,
)
from kv_core.contract.memory import regions_of
from kv_core.contract.transport import (
    PeerKey,
    Prepared,
    Transfer,
    TransferPlan,
    TransferProgress,
    Transport,
    TransportContext,
)
from kv_core.layout import MemoryLayout, Pages, make_batch, page_batch, plan_transfer

WAIT_S = 0.2
"""How long the owner thread sleeps in ``wait`` while it is asked nothing: a request wakes it."""
Pairs = tuple[npt.ArrayLike, npt.ArrayLike]
"""Local and remote items of a pool, one for one."""
Placed = Mapping[str, tuple[Pages, Pages]]
"""By pool: the pages, and items, that each side names, local and remote, as they stand in a prompt."""
MAX_DESCRIPTORS = 4096
"""Copies in one submission, as kv-core makes them by default."""
MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class WireOrder:
    """How a node with a transport is to be made. ``register``: whether all of its memory is registered at once."""

    backend: str
    role: Role
    shape: Shape
    memory: tuple[int, int]
    config: Mapping[str, Any] = field(default_factory=dict)
    direction: Direction = Direction.WRITE
    register: bool = True


@dataclass(frozen=True)
class Introduction:
    """What another node needs to know of this one. ``topology``: its rank's place."""

    name: str
    descriptor: bytes
    layout: MemoryLayout
    topology: Topology


@dataclass(frozen=True)
class Record:
    """How a transfer is going, as ``progress`` says; REFUSED ones raised in ``submit``: nothing was posted if quiescent."""

    number: int
    state: TransferState
    quiescent: bool
    error: str | None = None
    wire_seconds: float | None = None
    refused: bool = False


class WireServer:
    """A transport, what is prepared, and what was submitted, by number. The thread that serves is the owner thread."""

    def __init__(self, order: WireOrder) -> None:
        self.order = order
        self.memory = Memory(order.shape, opened=order.memory)
        self.args = self.memory.args()
        self.layout = MemoryLayout.of(self.args)
        self.name = uuid.uuid4().hex
        kind = load_backend(order.backend).record.transport
        self.transport: Transport = kind(
            TransportContext(order.role, self.name, TransferConfig(**order.config), order.direction)
        )
        self.blocking = self.transport.threading is ThreadingModel.BLOCKING
        self.prepared: dict[int, Prepared] = {}
        self.transfers: dict[int, Transfer] = {}
        self.raised: dict[int, Record] = {}
        self._submitting: dict[int, Future[Transfer]] = {}
        self._lines: dict[str, ThreadPoolExecutor] = {}  # BLOCKING: a posting thread for each peer, as core has it
        self._numbers = iter(range(1, 1 << 62))
        self._closed = False
        try:
            if order.register:
                self.transport.register_memory(self.layout.regions())
        except BaseException:
            self.transport.close()
            raise

    def serve(self, pipe: Connection, handle: Callable[..., None]) -> None:
        """Answer requests on this thread, which is in ``wait`` in between, and is woken by another one."""
        requests: SimpleQueue[Any] = SimpleQueue()

        def read() -> None:
            try:
                while True:
                    requests.put(pipe.recv())
                    self.transport.wake()
            except (EOFError, OSError):
                requests.put(None)

        threading.Thread(target=read, name="requests").start()
        while True:
            while requests.empty():
                if self._closed:
                    requests.put(requests.get())
                else:
                    self.transport.wait(WAIT_S)
            request = requests.get()
            if request is None:
                return
            handle(pipe, self, request)

    # -- memory and peers ------------------------------------------------------------------------------------------

    def introduce(self) -> Introduction:
        """What a peer needs."""
        return Introduction(self.name, self.transport.local_descriptor(), self.layout, self.args.topology)

    def regions(self) -> list[Region]:
        """All regions of this node's memory."""
        return list(regions_of(self.args))

    def register(self, regions: Sequence[Region]) -> None:
        """See ``Transport.register_memory``."""
        self.transport.register_memory(regions)

    def deregister(self, regions: Sequence[Region]) -> None:
        """See ``Transport.deregister_memory``."""
        self.transport.deregister_memory(regions)

    def add_peer(self, name: str, generation: int, descriptor: bytes) -> None:
        """See ``Transport.add_peer``."""
        self.transport.add_peer(PeerKey(name, generation), descriptor)

    def plan(self, layout: MemoryLayout, topology: Topology | None = None) -> TransferPlan:
        """What moves between this rank and one with this layout; its place: None for the same as here."""
        place = self.args.topology
        return plan_transfer(
            self.layout, layout, local_topology=place, remote_topology=topology or place,
            local_sends=self.order.role is Role.PREFILL,
        )  # fmt: skip

    def prepare(self, name: str, generation: int, layout: MemoryLayout, topology: Topology | None = None) -> int:
        """Plan and prepare; the number of what was prepared."""
        plan = self.plan(layout, topology)
        number = next(self._numbers)
        self.prepared[number] = self.transport.prepare(PeerKey(name, generation), plan)
        return number

    def meet(self, other: Introduction, generation: int) -> int:
        """Add a peer and prepare for it."""
        self.add_peer(other.name, generation, other.descriptor)
        return self.prepare(other.name, generation, other.layout, other.topology)

    def remove_peer(self, name: str, generation: int) -> None:
        """See ``Transport.remove_peer``."""
        self.transport.remove_peer(PeerKey(name, generation))

    def describe(self, name: str, generation: int) -> str:
        """See ``Transport.describe``."""
        return self.transport.describe(PeerKey(name, generation))

    def fence(self, name: str, generation: int) -> None:
        """See ``Transport.fence``."""
        self.transport.fence(PeerKey(name, generation))

    def probe(self, name: str, generation: int) -> bool:
        """See ``Transport.probe``."""
        return self.transport.probe(PeerKey(name, generation))

    # -- transfers -------------------------------------------------------------------------------------------------

    def submit(
        self, prepared: int, kv: Pairs | None, states: Mapping[str, Pairs] | None = None,
        aux: tuple[int, int] | None = None,
        layers: range | None = None, times: int = 1,
    ) -> list[int]:  # fmt: skip
        """Submit a batch of these items (``aux``: one local and one remote row) ``times`` times; the transfers' numbers. What
        ``submit`` raises is in the record.
        """
        plan = self.prepared[prepared]
        batch = make_batch(
            plan.plan,
            None if kv is None else (*_pair(kv), layers),
            {name: _pair(pair) for name, pair in (states or {}).items()},
            aux,
        )
        return [self._submit(plan, batch) for _ in range(times)]

    def submit_pages(self, prepared: int, placed: Placed, layers: range | None = None) -> list[int]:
        """Submit what both sides name of these pools, paired by its place in the prompt and cut into batches as core does it;
        the transfers' numbers. Pools that the plan leaves out are passed over.
        """
        plan = self.prepared[prepared]
        batch = page_batch(plan.plan, placed, layers)
        return [self._submit(plan, part) for part in batch.split(MAX_DESCRIPTORS, MAX_BYTES)]

    def _submit(self, plan: Prepared, batch: Any) -> int:
        number = next(self._numbers)
        if self.blocking:
            line = self._lines.setdefault(plan.peer.name, ThreadPoolExecutor(1, f"post-{plan.peer.name[:6]}"))
            self._submitting[number] = line.submit(self.transport.submit, plan, batch)
            self._submitting[number].add_done_callback(lambda _: self.transport.wake())  # as core does it
            return number
        try:
            self.transfers[number] = self.transport.submit(plan, batch)
        except TransportError as error:
            self.raised[number] = _refused(number, error)
        return number

    def _collect(self) -> None:
        for number, future in list(self._submitting.items()):
            if future.done():
                del self._submitting[number]
                error = future.exception()
                if error is None:
                    self.transfers[number] = future.result()
                elif isinstance(error, TransportError):
                    self.raised[number] = _refused(number, error)
                else:
                    raise error

    def progress(self, numbers: Sequence[int]) -> list[Record]:
        """One call of ``progress`` for these transfers; what it says, and what ``submit`` raised. PENDING ones are left out
        or not, as the transport does it.
        """
        self._collect()
        known = {id(self.transfers[number]): number for number in numbers if number in self.transfers}
        asked = [self.transfers[number] for number in numbers if number in self.transfers]
        said = list(self.transport.progress(asked)) if asked else []
        return [_record(known[id(one.transfer)], one) for one in said] + [
            self.raised[number] for number in numbers if number in self.raised
        ]

    def drive(self, numbers: Sequence[int], limit_s: float, *, quiescent: bool = True) -> list[Record]:
        """``progress`` and ``wait`` until each transfer has ended (and is quiescent); the last record of each, in order. At
        the limit: what there is, PENDING ones as PENDING.
        """
        deadline = monotonic() + limit_s
        latest: dict[int, Record] = {}
        left = list(numbers)
        while left and monotonic() < deadline:
            latest.update((record.number, record) for record in self.progress(left))
            left = [number for number in left if not self._ended(latest.get(number), quiescent)]
            if left:
                self.transport.wait(0.05 if self._submitting else min(WAIT_S, max(0.0, deadline - monotonic())))
        pending = TransferState.PENDING
        return [latest.get(number) or Record(number, pending, quiescent=False) for number in numbers]

    @staticmethod
    def _ended(record: Record | None, quiescent: bool) -> bool:
        if record is None or record.state is TransferState.PENDING:
            return False
        return record.quiescent or not quiescent

    def release(self, numbers: Sequence[int]) -> None:
        """See ``Transport.release``; of those that raised in ``submit`` there is nothing to release."""
        for number in numbers:
            if number in self.transfers:
                self.transport.release(self.transfers.pop(number))
            self.raised.pop(number, None)

    def cancel(self, number: int) -> None:
        """See ``Transport.cancel``."""
        self._collect()
        self.transport.cancel(self.transfers[number])

    # -- the rest --------------------------------------------------------------------------------------------------

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the suite in the node's owner thread, with this object as its first argument."""
        return function(self, *args)

    def close(self) -> None:
        """See ``Transport.close``."""
        self._closed = True
        self.transport.close()
        for line in self._lines.values():
            line.shutdown(wait=False, cancel_futures=True)


def _pair(pair: Pairs) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    return np.asarray(pair[0], np.uint64), np.asarray(pair[1], np.uint64)


def _refused(number: int, error: TransportError) -> Record:
    return Record(number, TransferState.FAILED, error.quiescent, str(error), refused=True)


def _record(number: int, said: TransferProgress) -> Record:
    return Record(number, said.state, said.quiescent, said.error, said.wire_seconds)
