"""The transport contract over one Mooncake ``TransferEngine``.

**Threads.** An engine call that waits, waits natively, and a stopped peer is only noticed after 30 seconds: so this is a
``BLOCKING`` transport, and core gives each peer a thread, which posts. Another one waits for what was posted (``line``). The
engine has one IO thread; ``posting`` says how it is waited for without taking that thread's time.

**Quiescence.** The engine says of a batch that it has failed as soon as one copy has, and goes on with the others: what was
accepted has been seen to land half a second after the error. So a batch that failed after anything of it was posted is
FAILED and *not* quiescent. What would prove it quiescent, and what does not:

- *That the engine's own copies have all ended.* It tells nobody, and it would not do: a copy that was given up may lie in
  the receiver's socket buffer, and a stopped receiver takes it from there when it wakes up.
- *That the receiver deregistered the memory.* It checks an address when a copy begins and never again: a copy that has
  begun lands to its end, which a test shows. It also shares one port and one set of registrations among all its peers, so
  that it can refuse one of them only by refusing all. So FENCE is not declared.
- *An error code, a refused or reset connection, a timeout.* A firewall refuses connections too, and lets those that exist
  go on.
- *That the peer's process has ended*, does: its memory is gone with it. That proof is core's.

Reads are no better: a stopped peer answers what it was asked for when it wakes up, and the engine puts it where it was to go,
long after it gave the read up.

So such a batch is reported as not quiescent for as long as core asks, and core keeps its pages in quarantine, and counts
them. Quiescent from the start is what was refused before anything was posted: a peer that was removed, an open breaker, an
engine that does not answer, a session that could not be opened.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

import numpy as np

from kv_core import Direction, InvalidConfig, Region, ThreadingModel, TransferState, TransportError
from kv_core.contract.transport import (
    PeerKey,
    Prepared,
    Transfer,
    TransferBatch,
    TransferPlan,
    TransferProgress,
    Transport,
    TransportContext,
)
from kv_mooncake.breaker import Breaker
from kv_mooncake.descriptor import Descriptor, check_host
from kv_mooncake.engine import open_engine
from kv_mooncake.line import Line
from kv_mooncake.memory import RegisteredMemory
from kv_mooncake.options import engine_timeout_s, read
from kv_mooncake.peer import Peer
from kv_mooncake.posting import COPY_BYTES, Copies, Mover, Outcome


class MooncakePrepared(Prepared):
    """The addresses of both sides' regions, by their place in the plan."""

    def __init__(self, key: PeerKey, plan: TransferPlan, peer: Peer) -> None:
        super().__init__(key, plan)
        self.to = peer
        self.local = np.array([region.address for region in plan.local_regions], np.uint64)
        self.remote = np.array([region.address for region in plan.remote_regions], np.uint64)


class MooncakeTransfer(Transfer):
    """A batch. ``error`` is set before ``state``: they change on the thread that awaits, and are read by the owner."""

    __slots__ = ("error", "state")

    def __init__(self, peer: PeerKey, nbytes: int) -> None:
        super().__init__(peer, nbytes)
        self.error: str | None = None
        self.state = TransferState.PENDING if nbytes else TransferState.DONE


class MooncakeTransport(Transport):
    """One engine: its memory, its peers, and what has been posted to them."""

    threading = ThreadingModel.BLOCKING
    staging_below = 32_768  # measured over TCP: docs/topologies.md

    def __init__(self, context: TransportContext) -> None:
        super().__init__(context)
        host = context.advertised_host
        _check_host(host)
        self._options, self._fabric = read(context.config.options)
        timeout_s = engine_timeout_s()
        address = f"[{host}]" if ":" in host else host
        protocol, devices = self._fabric
        self._engine = open_engine(address, protocol, ",".join(devices), self._fabric.environment)
        self._memory = RegisteredMemory(self._engine)
        self._mover = Mover(
            self._engine, timeout_s, spin=protocol != "tcp", clock=time.monotonic, reads=context.direction is Direction.READ
        )  # fmt: skip
        self._descriptor = Descriptor(host, self._engine.get_rpc_port(), protocol)
        self._peers: dict[PeerKey, Peer] = {}
        self._lines: list[Line] = []  # also those of peers that were removed, while they wait for something
        self._sessions: dict[str, str] = {}  # by the engine's name for a peer: whose it is
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._closed = False

    # -- memory ----------------------------------------------------------------------------------------------------

    def register_memory(self, regions: Sequence[Region]) -> None:
        """See ``Transport``. Ranges that overlap must come in one call, or lie inside of what is registered."""
        self._memory.register(regions)

    def deregister_memory(self, regions: Sequence[Region]) -> None:
        """See ``Transport``."""
        self._memory.deregister(regions)

    # -- peers -----------------------------------------------------------------------------------------------------

    def local_descriptor(self) -> bytes:
        """See ``Transport``."""
        return self._descriptor.pack()

    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        """See ``Transport``."""
        try:
            where = Descriptor.unpack(descriptor)
        except ValueError as error:
            raise TransportError(f"peer {peer.name[:8]} sent {error}", quiescent=True) from error
        if where.protocol != self._fabric.protocol:
            raise TransportError(
                f"peer {peer.name[:8]} uses {where.protocol}, and this side {self._fabric.protocol}: give both the same "
                "option protocol",
                quiescent=True,
            )
        breaker = Breaker(self._options.failures_to_open, self._options.retry_after_s)
        self._lines.append(line := Line(self._mover, self._session(peer, where)))
        self._peers[peer] = Peer(peer, where, breaker, line)

    def _session(self, peer: PeerKey, where: Descriptor) -> str:
        """The engine keeps for ever what it learnt under a name: a process that has the port of an earlier one by chance
        needs another name, or it would be looked for at the earlier one's data port.
        """
        for number in itertools.count():
            session = where.session(number)
            if self._sessions.setdefault(session, peer.name) == peer.name:
                break
        return session

    def remove_peer(self, peer: PeerKey) -> None:
        """See ``Transport``. The engine keeps the session, and its connections, for a later generation."""
        known = self._peers.pop(peer, None)
        if known is not None:
            known.removed = True
        self._lines = [
            line for line in self._lines if line.busy or any(line is each.line for each in self._peers.values())
        ]

    def prepare(self, peer: PeerKey, plan: TransferPlan) -> MooncakePrepared:
        """See ``Transport``. The engine would read from any address here, so it is checked that the regions are ours."""
        known = self._peers.get(peer)
        if known is None:
            raise TransportError(f"peer {peer.name[:8]} generation {peer.generation} is not known", quiescent=True)
        for region in plan.local_regions:
            if not self._memory.holds(region):
                raise TransportError(
                    f"region {region.index} ({region.nbytes} bytes at {region.address:#x}) of the plan is not registered here",
                    quiescent=True,
                )
        return MooncakePrepared(peer, plan, known)

    def describe(self, peer: PeerKey) -> str:
        """See ``Transport``."""
        return str(self._fabric)

    def fabrics(self) -> tuple[str, ...]:
        """See ``Transport``: the engine was told which one when it started."""
        return (str(self._fabric),)

    def probe(self, peer: PeerKey) -> bool:
        """See ``Transport``: whether the peer's engine serves its port. Takes two seconds at the most."""
        known = self._peers.get(peer)
        return known is not None and known.probe()

    # -- transfers -------------------------------------------------------------------------------------------------

    def submit(self, prepared: Prepared, batch: TransferBatch) -> MooncakeTransfer:
        """See ``Transport``. Returns when all of it is posted, or has failed."""
        assert isinstance(prepared, MooncakePrepared), "made by prepare()"
        peer = prepared.to
        flat = batch.copies() if self._mover.spin else batch.copies().cut(COPY_BYTES)
        full = flat.length > 0
        if not full.all():
            flat = type(flat)(*(array[full] for array in flat))
        transfer = MooncakeTransfer(peer.key, int(flat.length.sum()))
        if not transfer.nbytes:
            return transfer
        copies = Copies(
            prepared.local[flat.local_region.astype(np.intp)] + flat.local_offset,
            prepared.remote[flat.remote_region.astype(np.intp)] + flat.remote_offset,
            flat.length,
        )
        what = f"{len(copies.length)} copies ({transfer.nbytes} bytes) to peer {peer.key.name[:8]} at {peer.session}"

        def conclude(outcome: Outcome) -> None:
            peer.tell(outcome)
            if outcome.error is not None:
                transfer.error = f"{what}: {outcome.error}"
            transfer.state = TransferState.DONE if outcome.error is None else TransferState.FAILED
            self.wake()

        peer.admit()
        refused = peer.line.move(copies, conclude)
        if refused is not None:
            peer.tell(refused)
            raise TransportError(f"{what}: {refused.error}", quiescent=True)
        return transfer

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        """See ``Transport``. A batch that failed is never called quiescent here: see the module."""
        for transfer in transfers:
            assert isinstance(transfer, MooncakeTransfer), "made by submit()"
            state = transfer.state
            if state is not TransferState.PENDING:
                yield TransferProgress(transfer, state, state is TransferState.DONE, transfer.error)

    def release(self, transfer: Transfer) -> None:
        """See ``Transport``: nothing is held."""

    # -- the owner thread's wait -----------------------------------------------------------------------------------

    def wait(self, timeout_s: float) -> None:
        """See ``Transport``. It is rung for when a batch has ended, and by core; nothing else happens here."""
        with suppress(Empty):  # the time is over
            self._bell.get(timeout=max(timeout_s, 0.0))
            while not self._bell.empty():
                self._bell.get_nowait()

    def wake(self) -> None:
        """See ``Transport``."""
        if self._bell.empty():
            self._bell.put(None)

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """See ``Transport``. The engine ends its threads and ports with its last reference: at once, or when the posting
        thread that is inside of it comes out. A destroyed engine reads from no socket any more.
        """
        if self._closed:
            return
        self._closed = True
        self._mover.stop()
        for peer in self._peers.values():
            peer.removed = True
        self._peers.clear()
        for line in self._lines:
            line.close()
        self._lines.clear()
        self._mover.forget()
        del self._engine, self._memory, self._mover


def _check_host(host: str) -> None:
    try:
        check_host(host)
    except ValueError as error:
        raise InvalidConfig(f"TransferConfig.advertised_host (or host): {error}") from None
    if ":" in host and not os.environ.get("MC_USE_IPV6"):
        raise InvalidConfig(
            f"TransferConfig.advertised_host (or host) is the IPv6 address {host}, and the engine listens on IPv4 only "
            "unless MC_USE_IPV6=1 is set before it is imported: set it before Python starts"
        )
