"""The transport contract over one NIXL agent, driven by core's owner thread alone.

**What is known when something fails** (all of it seen with NIXL 1.5.1 over UCX, and read in its source):

* What NIXL refused to *make* (a list, a request) was never posted: quiescent.
* DONE comes after a flush of the peer's endpoint, which follows all of the request's writes: they have landed.
* A request that failed when it was posted or asked about may have writes before, in and after the failing one. Over TCP
  they may sit in sockets on either side, over RDMA in the adapter's queue, and copies between processes that UCX has
  queued go on while anybody drives the worker. Releasing the handle stops none of them (all of them landed), nor does
  removing the remote agent; asking again only gets the same error. NIXL has no flush of its own, and one posted now would
  go over another endpoint than the failed one. So nothing that NIXL does or says proves quiescence.
* A read (pull) is DONE when its bytes are here. A failed one is as bad as a failed write: what the peer had sent may lie in a
  socket here, and land when the worker is driven. So core lets the worker be driven for a while after the peer's end.
* So a failed transfer stays unproven here. Core settles it once the peer's process has provably ended, for then the memory
  that could be hit is gone with it; elsewhere it quarantines the pages. A transfer to a stopped process stays PENDING over
  TCP, and goes on when the process does.

**Which fabric carries a peer's bytes** can't be asked; ``fabric`` says what can be known. It plays no part in the above.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any

import numpy as np

from kv_core import Direction, Region, Role, ThreadingModel, TransferState, TransportError, parse_options
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
from kv_nixl.engine import Engine
from kv_nixl.fabric import describe_place, name_fabric, possible_fabrics
from kv_nixl.lists import Geometry, Kinds
from kv_nixl.memory import RegisteredMemory
from kv_nixl.options import NixlOptions
from kv_nixl.peers import Descriptor, RemoteAgent, starts_with_name

SHORTEST_S = 0.00005
LONGEST_S = 0.001
"""While something is pending, ``wait`` asks after so long, and longer each time that nothing has moved on."""
LOOKAHEAD = 2
"""Transfers to one peer end nearly in order: this many unfinished ones are asked about, each takes the GIL once."""


class NixlPrepared(Prepared):
    """A plan as descriptor lists. ``lists``: NIXL's handles (local, remote) by kinds of memory, valid in ``epoch``."""

    def __init__(self, peer: PeerKey, plan: TransferPlan) -> None:
        super().__init__(peer, plan)
        self.geometry = Geometry(plan)
        self.lists: dict[Kinds, tuple[int, int]] = {}
        self.epoch = 0


class NixlTransfer(Transfer):
    """One request for each pair of kinds of memory; ``waiting`` of them are not known to have ended."""

    __slots__ = ("error", "handles", "quiescent", "remote", "state", "waiting", "wire_seconds")

    def __init__(self, peer: PeerKey, nbytes: int, remote: RemoteAgent, handles: list[int]) -> None:
        super().__init__(peer, nbytes)
        self.remote = remote
        self.handles = handles
        self.waiting: list[int] = []
        self.state = TransferState.PENDING
        self.quiescent = False
        self.error: str | None = None
        self.wire_seconds: float | None = None


class NixlTransport(Transport):
    """One process's agent. See the module for threads, and for what a failure means."""

    threading = ThreadingModel.OWNER
    staging_below = 8_192  # measured over CMA and TCP: docs/topologies.md

    def __init__(self, context: TransportContext) -> None:
        super().__init__(context)
        options = parse_options(NixlOptions, context.config.options, backend="nixl")
        self._options = options
        reads = context.direction is Direction.READ
        self._initiator = (context.role is Role.DECODE) is reads
        self._bell = threading.Lock()  # taken: nobody rang
        self._bell.acquire()
        self._engine = Engine(
            context.instance_id,
            options,
            threads=options.threads(initiator=self._initiator, host=context.advertised_host),
            progress_delay_us=options.progress_delay(initiator=self._initiator),
        )
        self._agent = self._engine.agent
        lib = self._engine.lib
        self._operation = lib.NIXL_READ if reads else lib.NIXL_WRITE
        self._success, self._in_progress = lib.NIXL_SUCCESS, lib.NIXL_IN_PROG
        self._memory = RegisteredMemory(self._engine)
        self._place = describe_place()
        self._strided = True  # until NIXL says that it does not know such lists
        self._named = True
        self._remotes: dict[str, RemoteAgent] = {}
        self._peers: dict[PeerKey, RemoteAgent] = {}
        self._prepared: dict[PeerKey, list[NixlPrepared]] = {}
        self._busy: dict[RemoteAgent, None] = {}
        self._handles: set[int] = set()
        self._pause = SHORTEST_S
        self._asked = False
        self._closed = False

    # -- memory ----------------------------------------------------------------------------------------------------

    def register_memory(self, regions: Sequence[Region]) -> None:
        """See ``Transport``."""
        self._memory.register(regions)

    def deregister_memory(self, regions: Sequence[Region]) -> None:
        """See ``Transport``. Without RDMA it keeps nobody from writing there."""
        self._memory.deregister(regions)

    # -- peers -----------------------------------------------------------------------------------------------------

    def local_descriptor(self) -> bytes:
        """See ``Transport``."""
        metadata = self._memory.metadata()
        self._named = starts_with_name(metadata, self.context.instance_id)
        return Descriptor(self._options.backend, self._place, metadata).pack()

    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        """See ``Transport``. The side that posts nothing only looks at the descriptor: it needs no connection."""
        told = self._read(peer, descriptor)
        remote = self._remotes.get(peer.name)
        if remote is None or remote.metadata != told.metadata:
            if remote is not None:  # NIXL knows one agent of a name; this one's last transfers have not ended
                for transfer in list(remote.pending):
                    self._fail(transfer, "the peer was replaced by another process of the same name")
                self._unload(remote)
            remote = RemoteAgent(peer.name, told)
            if self._initiator:
                self._load(remote)
        self._remotes[peer.name] = self._peers[peer] = remote

    def _read(self, peer: PeerKey, descriptor: bytes) -> Descriptor:
        try:
            told = Descriptor.unpack(descriptor)
            if told.backend != self._options.backend:
                raise ValueError(
                    f"a descriptor of NIXL backend {told.backend!r}, this side has {self._options.backend!r}: set option "
                    "backend to the same on both"
                )
            if self._named and not starts_with_name(told.metadata, peer.name):
                raise ValueError("the metadata of another agent")
        except ValueError as error:
            raise TransportError(f"peer {peer.name[:8]} sent {error}", quiescent=True) from error
        return told

    def _load(self, remote: RemoteAgent) -> None:
        try:
            name = self._agent.loadRemoteMD(remote.metadata)
        except self._engine.errors as error:
            raise TransportError(
                f"NIXL can't load the metadata of peer {remote.name[:8]}: {_said(error)}. Has it the same NIXL version, and "
                "can this host reach one of its devices?",
                quiescent=True,
            ) from error
        if name != remote.name.encode():
            self._agent.invalidateRemoteMD(name.decode())
            raise TransportError(f"peer {remote.name[:8]} sent the metadata of another agent", quiescent=True)
        remote.loaded, remote.broken = True, False
        remote.epoch += 1

    def _unload(self, remote: RemoteAgent) -> None:
        if remote.loaded:
            remote.loaded = False
            with contextlib.suppress(*self._engine.errors):  # NIXL itself forgets an agent whose endpoint failed
                self._agent.invalidateRemoteMD(remote.name)

    def remove_peer(self, peer: PeerKey) -> None:
        """See ``Transport``."""
        if self._peers.pop(peer, None) is None:
            return
        for prepared in self._prepared.pop(peer, ()):
            self._drop_lists(prepared)
        self._sweep()

    def _sweep(self) -> None:
        """Unload agents that nobody needs: no peer, and no transfer that NIXL still has to be asked about."""
        needed = set(self._peers.values())
        for name, remote in list(self._remotes.items()):
            if remote not in needed and not remote.pending:
                self._unload(remote)
                del self._remotes[name]

    def describe(self, peer: PeerKey) -> str:
        """See ``Transport``: "ucx rdma", "ucx cma", "ucx tcp", or just the backend where it can't be known; see ``fabric``."""
        remote = self._peers.get(peer)
        return (remote.fabric if remote is not None else "") or self._options.backend.lower()

    def fabrics(self) -> tuple[str, ...]:
        """See ``Transport``."""
        return possible_fabrics(self._options)

    # -- descriptor lists ------------------------------------------------------------------------------------------

    def prepare(self, peer: PeerKey, plan: TransferPlan) -> NixlPrepared:
        """See ``Transport``."""
        remote = self._peers.get(peer)
        if remote is None:
            raise TransportError(f"peer {peer.name[:8]} generation {peer.generation} is not known", quiescent=True)
        prepared = NixlPrepared(peer, plan)
        if remote.loaded and not remote.broken:
            self._make_lists(prepared, remote)
        remote.fabric = name_fabric(self._options, self._place, remote.place, plan.remote_regions)
        self._prepared.setdefault(peer, []).append(prepared)
        return prepared

    def _make_lists(self, prepared: NixlPrepared, remote: RemoteAgent) -> None:
        self._drop_lists(prepared)
        prepared.epoch = remote.epoch
        if not (self._strided and prepared.geometry.fits):
            return
        for kinds, pair in prepared.geometry.pairs.items():
            local = self._make_list(self._engine.lib.NIXL_INIT_AGENT, kinds[0], pair.local)
            if local is None:
                return
            prepared.lists[kinds] = (local, 0)
            remote_list = self._make_list(remote.name, kinds[1], pair.remote)
            prepared.lists[kinds] = (local, remote_list or 0)

    def _make_list(self, agent: str, kind: Any, rows: list[Any]) -> int | None:
        try:
            handle: int = self._agent.prepXferDlist(agent, self._engine.segments[kind], np.concatenate(rows), [])
        except TypeError:  # a NIXL without strided lists: batches go by address
            self._strided = False
            return None
        except self._engine.errors as error:
            whose = "here" if agent == self._engine.lib.NIXL_INIT_AGENT else f"at peer {agent[:8]}"
            raise TransportError(
                f"NIXL does not know some of the memory {whose} that the layouts name ({_said(error)}): was all of it "
                "registered before the descriptor was made?",
                quiescent=True,
            ) from error
        return handle

    def _drop_lists(self, prepared: NixlPrepared) -> None:
        for pair in prepared.lists.values():
            for handle in filter(None, pair):
                self._agent.releasedDlistH(handle)
        prepared.lists.clear()

    # -- transfers -------------------------------------------------------------------------------------------------

    def submit(self, prepared: Prepared, batch: TransferBatch) -> NixlTransfer:
        """See ``Transport``. Where UCX copies between processes it copies right here; the GIL is free meanwhile."""
        assert isinstance(prepared, NixlPrepared), "made by prepare()"
        remote = self._peers.get(prepared.peer)
        if remote is None:
            raise TransportError(f"peer {prepared.peer.name[:8]} is not known any more", quiescent=True)
        if not batch.slices:
            transfer = NixlTransfer(prepared.peer, 0, remote, [])
            transfer.state, transfer.quiescent = TransferState.DONE, True
            return transfer
        if remote.broken or not remote.loaded:
            self._reload(remote)
        if prepared.epoch != remote.epoch:
            self._make_lists(prepared, remote)
        transfer = NixlTransfer(prepared.peer, batch.nbytes, remote, self._requests(prepared, remote, batch))
        self._post(transfer)
        return transfer

    def _reload(self, remote: RemoteAgent) -> None:
        """After a failed endpoint: a new one, by forgetting the agent and loading it again."""
        if remote.pending:
            raise TransportError(
                f"the connection to peer {remote.name[:8]} failed, and {len(remote.pending)} transfers over it have not "
                "ended yet: nothing is moved before they have",
                quiescent=True,
            )
        self._unload(remote)
        self._load(remote)

    def _requests(self, prepared: NixlPrepared, remote: RemoteAgent, batch: TransferBatch) -> list[int]:
        """NIXL's requests, made and not posted."""
        handles: list[int] = []
        lib, agent = self._engine.lib, self._agent
        try:
            if prepared.lists:
                for kinds, (mine, theirs) in prepared.geometry.indices(batch).items():
                    local, far = prepared.lists[kinds]
                    handles.append(agent.makeXferReq(self._operation, local, mine, far, theirs, b"", []))
            else:
                for kinds, rows in prepared.geometry.addresses(batch).items():
                    here, there = (
                        lib.nixlXferDList(self._engine.segments[kind], side)
                        for kind, side in zip(kinds, rows, strict=True)
                    )
                    handles.append(agent.createXferReq(self._operation, here, there, remote.name, b"", []))
        except self._engine.errors as error:
            for handle in handles:
                agent.releaseXferReq(handle)
            remote.broken = True
            raise TransportError(
                f"NIXL refused the transfer, nothing was moved: {_said(error)}", quiescent=True
            ) from error
        self._handles.update(handles)
        return handles

    def _post(self, transfer: NixlTransfer) -> None:
        for handle in transfer.handles:
            try:
                status = self._agent.postXferReq(handle, b"")
            except self._engine.errors as error:
                self._fail(transfer, f"NIXL failed to reach peer {transfer.peer.name[:8]}: {_said(error)}")
                return
            if status != self._success:
                transfer.waiting.append(handle)
        if transfer.waiting:
            transfer.remote.pending[transfer] = None
            self._busy[transfer.remote] = None
            self._pause = SHORTEST_S
        else:
            self._done(transfer)

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        """See ``Transport``."""
        if not self._asked:
            self._ask()
        self._asked = False
        if len(self._remotes) != len(self._peers):
            self._sweep()
        for transfer in transfers:
            assert isinstance(transfer, NixlTransfer), "made by submit()"
            if transfer.state is TransferState.PENDING:
                continue
            yield TransferProgress(transfer, transfer.state, transfer.quiescent, transfer.error, transfer.wire_seconds)

    def _ask(self) -> bool:
        """Ask NIXL about the oldest transfers to each peer; whether any has ended."""
        moved = False
        for remote in list(self._busy):
            unfinished = 0
            for transfer in list(remote.pending):
                if self._has_ended(transfer):
                    moved = True
                else:
                    unfinished += 1
                    if unfinished == LOOKAHEAD:
                        break
            if not remote.pending:
                del self._busy[remote]
        return moved

    def _has_ended(self, transfer: NixlTransfer) -> bool:
        while transfer.waiting:
            try:
                status = self._agent.getXferStatus(transfer.waiting[-1])
            except self._engine.errors as error:
                self._fail(transfer, f"NIXL lost peer {transfer.peer.name[:8]} in the middle: {_said(error)}")
                return True
            if status != self._success:
                return False
            transfer.waiting.pop()
        self._done(transfer)
        return True

    def _done(self, transfer: NixlTransfer) -> None:
        transfer.remote.pending.pop(transfer, None)
        transfer.state, transfer.quiescent = TransferState.DONE, True
        transfer.wire_seconds = self._measured(transfer)

    def _fail(self, transfer: NixlTransfer, error: str) -> None:
        transfer.remote.pending.pop(transfer, None)
        transfer.remote.broken = True
        transfer.state, transfer.error = TransferState.FAILED, error

    def _measured(self, transfer: NixlTransfer) -> float | None:
        """NIXL's own times: from the first post to the last completion that NIXL saw (in a post, or when it was asked)."""
        try:
            told = [self._agent.getXferTelemetry(handle) for handle in transfer.handles]
        except self._engine.errors:  # the user has switched telemetry off: NIXL_TELEMETRY_ENABLE=n
            return None
        stop = max(each.startTime + each.xferDuration for each in told)
        return float(stop - min(each.startTime for each in told)) * 1e-6

    def release(self, transfer: Transfer) -> None:
        """See ``Transport``."""
        assert isinstance(transfer, NixlTransfer), "made by submit()"
        transfer.remote.pending.pop(transfer, None)
        for handle in transfer.handles:
            if handle in self._handles:
                self._handles.discard(handle)
                with contextlib.suppress(*self._engine.errors):  # it goes with the agent, at the latest
                    self._agent.releaseXferReq(handle)
        transfer.handles = []

    # -- the owner thread's wait -----------------------------------------------------------------------------------

    def wait(self, timeout_s: float) -> None:
        """See ``Transport``. With nothing pending it sleeps; otherwise it asks NIXL, less often the longer it takes."""
        until = monotonic() + timeout_s
        while (left := until - monotonic()) > 0.0:
            if self._bell.acquire(timeout=min(left, self._pause) if self._busy else left) or not self._busy:
                return
            self._asked = True
            if self._ask():
                self._pause = SHORTEST_S
                return
            self._pause = min(self._pause * 1.5, LONGEST_S)

    def wake(self) -> None:
        """See ``Transport``."""
        with contextlib.suppress(RuntimeError):  # it rings already
            self._bell.release()

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """See ``Transport``. What is still in flight is not stopped by this, as far as anybody can tell."""
        if self._closed:
            return
        self._closed = True
        agent, errors = self._agent, self._engine.errors
        for handle in self._handles:
            with contextlib.suppress(*errors):  # it goes with the agent, at the latest
                agent.releaseXferReq(handle)
        for peer in list(self._peers):
            self._remotes[peer.name].pending.clear()
            self.remove_peer(peer)
        for remote in self._remotes.values():
            self._unload(remote)
        with contextlib.suppress(*errors):  # likewise
            self._memory.clear()
        self._handles.clear()
        self._busy.clear()
        self._remotes.clear()
        del self._agent, self._engine.agent, agent  # its threads and sockets end here


def _said(error: Exception) -> str:
    return f"{type(error).__name__.removeprefix('nixl')} ({error})"
