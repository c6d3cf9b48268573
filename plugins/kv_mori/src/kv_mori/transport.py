"""The transport contract over one MORI ``IOEngine``.

**How it drives the engine.** ``prepare`` makes a session for each pair of regions that the plan uses, which is when MORI
connects queue pairs, registers memory with the device and fetches the peer's keys (over TCP, holding the GIL; each step
ends after 5 seconds, MORI_IO_CP_TIMEOUT_MS). ``submit`` then makes *one* call of ``IOEngine.batch_write`` for all pairs:
one call per session would give up the GIL 64 times for a room, and take it back 64 times from a busy engine. ``wait``
blocks in ``wait_all`` on the oldest status, natively and for a millisecond at a time, for nothing can interrupt it; where
nothing has moved for a while (a peer that hangs) it looks 200 times a second instead.

**What a failure proves** (MORI 1.2.4; its C++ sources of 1.2.2 were read, the wheel's compiled code can't be):

- SUCCESS of a status: each work request was acknowledged by the peer's NIC, in order. Quiescent.
- ERR_RDMA_OP comes with the *first* work request that fails, or when posting fails half-way. A batch is spread over
  several queue pairs, and the others still work. Even of the broken one the API does not tell when its last request
  was flushed. Nothing is proven, also not by the other statuses of the transfer.
- ERR_GPU_OP, ERR_BAD_STATE, ERR_NOT_FOUND, ERR_INVALID_ARGS: with worker threads or streams one share of a batch may be
  refused while another one is on its way. Nothing is proven. (Offsets are checked here first, so that the ordinary
  mistakes never get that far, and are quiescent.)
- INIT after the call: not taken up. Probably nothing was posted; it is not taken for a proof.
- An exception out of ``batch_write``: earlier pairs may have been posted. Nothing is proven, and the engine may still
  hold pointers to statuses that live in the frames of that call only: so those are kept.
- A killed peer: its NIC no longer acknowledges, and the statuses fail after the retry limit (about 4 seconds). That its
  process has ended is core's to prove; nothing here can.

So a failed transfer is quiescent if whatever was posted of it has succeeded (the rest was held back here, for a peer that
was removed), and else never on MORI's word.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from kv_core import (
    Direction,
    MemoryKind,
    NotSupported,
    Region,
    RegistrationError,
    ThreadingModel,
    TransportError,
    parse_options,
)
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
from kv_mori import wire
from kv_mori.engine import load, open_engine
from kv_mori.options import MoriOptions
from kv_mori.peers import MoriPeer, MoriPrepared
from kv_mori.transfer import MoriTransfer, cut

SLICE_MS = 1
"""How long ``wake`` may go unheard while something is in flight."""
SCAN_S = 0.05
STALL_S = 0.05
STALL_LOOK_S = 0.005
"""Nothing has moved for so long: it is looked at only so often, and ``wake`` is heard at once."""


class MoriTransport(Transport):
    """One process's engine. Every method but ``wake`` is the owner thread's."""

    threading = ThreadingModel.OWNER

    def __init__(self, context: TransportContext) -> None:
        super().__init__(context)
        if context.direction is Direction.READ:
            raise NotSupported("reading from a peer (pull)", "read")
        self._options = parse_options(MoriOptions, context.config.options, backend="mori")
        self._io = load()
        self._engine = open_engine(self._io, context, self._options)
        self._memory: dict[Region, Any] = {}
        self._times: Counter[Region] = Counter()
        self._peers: dict[PeerKey, MoriPeer] = {}
        self._moving: dict[MoriTransfer, MoriPeer] = {}  # posted or held back, and not told as ended; oldest first
        self._kept: list[Any] = []  # what the engine may still write to
        self._uids = itertools.count(1)  # MORI's own would cost a GIL round trip each; they only spread the load here
        self._bell = threading.Event()
        self._scan_at = 0.0
        self._moved_at = 0.0
        self._closed = False

    # -- memory ----------------------------------------------------------------------------------------------------

    def register_memory(self, regions: Sequence[Region]) -> None:
        """See ``Transport``. MORI registers with the device later, in ``prepare``, and aborts the process if that fails."""
        done: list[Region] = []
        try:
            for position, region in enumerate(regions):
                self._register(position, region)
                done.append(region)
        except BaseException:
            self.deregister_memory(done)
            raise

    def _register(self, position: int, region: Region) -> None:
        if region in self._memory:
            self._times[region] += 1
            return
        places = self._io.MemoryLocationType
        if region.kind is MemoryKind.HOST:
            device, place = -1, places.CPU
        elif region.kind is MemoryKind.ROCM:
            device, place = region.device_id, places.GPU
        else:
            raise RegistrationError(f"region {position}: MORI takes no {region.kind.value} memory", region=position)
        if place is places.CPU and self._options.fabric == "xgmi":
            raise RegistrationError(f"region {position}: XGMI carries no host memory", region=position)
        for known, desc in self._memory.items():
            if known.address == region.address:
                if (known.nbytes, known.kind, known.device_id) != (region.nbytes, region.kind, region.device_id):
                    raise RegistrationError(
                        f"region {position}: {known.nbytes} bytes are registered at {region.address:#x}, and MORI can't "
                        f"tell {region.nbytes} bytes there from them",
                        region=position,
                    )
                self._memory[region] = desc
                return
        try:
            self._memory[region] = self._engine.register_memory(region.address, region.nbytes, device, place)
        except Exception as error:
            raise RegistrationError(
                f"region {position} ({region.nbytes} bytes at {region.address:#x}): {error}", region=position
            ) from error

    def deregister_memory(self, regions: Sequence[Region]) -> None:
        """See ``Transport``."""
        for region in regions:
            if self._times[region]:
                self._times[region] -= 1  # it was registered once more
                continue
            desc = self._memory.pop(region, None)
            if desc is not None and not any(desc is other for other in self._memory.values()):
                self._engine.deregister_memory(desc)

    def local_descriptor(self) -> bytes:
        """See ``Transport``."""
        memory = tuple(wire.Memory(region.index, region.nbytes, desc.pack()) for region, desc in self._memory.items())
        return wire.pack(self._engine.get_engine_desc().pack(), memory)

    # -- peers -----------------------------------------------------------------------------------------------------

    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        """See ``Transport``."""
        try:
            own = next((desc.pack() for desc in self._memory.values()), b"\x90")  # an empty one: like none of theirs
            found = wire.unpack(descriptor, self._engine.get_engine_desc().pack(), own)
            there = self._io.EngineDesc.unpack(found.engine)
            memory = {item.index: self._io.MemoryDesc.unpack(item.packed) for item in found.memory}
        except Exception as error:
            raise TransportError(f"peer {peer.name[:8]} sent {error}", quiescent=True) from error
        if there.key in (self.context.instance_id, *(known.engine.key for known in self._peers.values())):
            raise TransportError(f"peer {peer.name[:8]} sent the engine key of another one", quiescent=True)
        self._engine.register_remote_engine(there)
        self._peers[peer] = MoriPeer(there, memory)

    def remove_peer(self, peer: PeerKey) -> None:
        """See ``Transport``. What was held back for it fails; what was posted stays in ``progress``."""
        known = self._peers.pop(peer, None)
        if known is not None:
            while known.waiting:
                known.waiting.popleft().fail("the peer was removed before everything was posted")
            self._engine.deregister_remote_engine(known.engine)

    def prepare(self, peer: PeerKey, plan: TransferPlan) -> MoriPrepared:
        """See ``Transport``. Talks to the peer's engine: once per pair of regions, and for each queue pair."""
        known = self._peers.get(peer)
        if known is None:
            raise TransportError(f"peer {peer.name[:8]} generation {peer.generation} is not known", quiescent=True)
        mine = {region.index: desc for region, desc in self._memory.items()}
        prepared = MoriPrepared(
            peer, plan, [mine.get(region.index) for region in plan.local_regions],
            [known.memory.get(region.index) for region in plan.remote_regions],
        )  # fmt: skip
        for local, remote in prepared.pairs():
            ends = prepared.regions[0][local], prepared.regions[1][remote]
            what = f"regions {plan.local_regions[local].index} here and {plan.remote_regions[remote].index} there"
            if ends[0] is None or ends[1] is None:
                raise TransportError(
                    f"{what}: {'the peer' if ends[0] else 'this process'} has not registered it", quiescent=True
                )
            try:
                session = self._engine.create_session(*ends)
            except Exception as error:
                raise TransportError(f"MORI can't connect {what}: {error}", quiescent=True) from error
            if session is None:
                raise TransportError(
                    f"MORI has no route between {what} (fabric {self._options.fabric})", quiescent=True
                )
            prepared.sessions.append(session)
        return prepared

    def describe(self, peer: PeerKey) -> str:
        """See ``Transport``: the backends that were created. Which of two MORI chose, and the device, it does not tell."""
        return self._options.fabric.replace("+", " or ")

    def fabrics(self) -> tuple[str, ...]:
        """See ``Transport``."""
        return (self._options.fabric.replace("+", " or "),)

    # -- transfers -------------------------------------------------------------------------------------------------

    def submit(self, prepared: Prepared, batch: TransferBatch) -> MoriTransfer:
        """See ``Transport``."""
        assert isinstance(prepared, MoriPrepared), "made by prepare()"
        peer = self._peers.get(prepared.peer)
        if peer is None:
            raise TransportError(f"peer {prepared.peer.name[:8]} is not known any more", quiescent=True)
        if peer.failed and not all(session.alive() for session in prepared.sessions):
            raise TransportError(
                "a queue pair to the peer is broken, and MORI makes no other one: restart one of the two processes",
                quiescent=True,
            )
        copies = batch.copies()
        prepared.check(copies)
        options = self._options
        chunks = (options.chunk_bytes if options.enable_transfer_chunking else 0, options.max_chunks_per_transfer)
        parts = cut(copies, prepared.regions, options.max_outstanding, chunks) if len(copies.length) else iter(())
        transfer = MoriTransfer(prepared.peer, int(copies.length.sum()), parts)
        if transfer.held:
            self._moving[transfer] = peer
            self._moved_at = monotonic()
            peer.waiting.append(transfer)
            self._post(peer)
        return transfer

    def _post(self, peer: MoriPeer) -> None:
        """Post what the send queue has room for, first come, first served."""
        while peer.waiting:
            transfer = peer.waiting[0]
            parts = []
            limit = self._options.max_outstanding
            while transfer.held and (not peer.weight or peer.weight + transfer.held[0].weight <= limit):
                parts.append(transfer.held.popleft())
                peer.weight += parts[-1].weight
                transfer.weight += parts[-1].weight
            if parts:
                self._call(transfer, *map(list, zip(*parts, strict=True)))
            if transfer.held:
                return
            peer.waiting.popleft()

    def _call(
        self, transfer: MoriTransfer, local: list[Any], local_offsets: list[Any], remote: list[Any],
        remote_offsets: list[Any], sizes: list[Any], weights: list[int],
    ) -> None:  # fmt: skip
        uids = list(itertools.islice(self._uids, len(local)))
        try:
            transfer.posted(self._engine.batch_write(local, local_offsets, remote, remote_offsets, sizes, uids))
        except Exception as error:  # noqa: BLE001  (whatever it was, the transfer has failed, and core is told)
            self._kept += orphans(error)
            transfer.proven = False
            transfer.fail(f"MORI's batch_write raised {type(error).__name__}: {error}")

    def progress(self, transfers: Sequence[Transfer]) -> list[TransferProgress]:
        """See ``Transport``."""
        now = monotonic()
        thorough = now >= self._scan_at
        if thorough:
            self._scan_at = now + SCAN_S
        self._look(thorough=thorough)
        records = []
        for transfer in transfers:
            assert isinstance(transfer, MoriTransfer), "made by submit()"
            if transfer.error is not None:
                quiescent = transfer.proven and not transfer.pending
                records.append(TransferProgress(transfer, transfer.state, quiescent, transfer.error))
            elif not (transfer.pending or transfer.held):
                records.append(TransferProgress(transfer, transfer.state, quiescent=True))
        return records

    def _look(self, *, thorough: bool) -> bool:
        """Ask for everything in flight, and post what there is room for now; True if there is news."""
        for transfer, peer in list(self._moving.items()):
            if transfer.pending:
                transfer.look(thorough=thorough)
                peer.failed = peer.failed or transfer.error is not None
            if not transfer.pending and transfer.weight:
                peer.weight -= transfer.weight
                transfer.weight = 0
        news = [transfer for transfer in self._moving if transfer.news]
        for transfer in news:
            transfer.news = False
            self._moved_at = monotonic()
        for peer in {id(peer): peer for peer in self._moving.values() if peer.waiting}.values():
            self._post(peer)
        return bool(news)

    def release(self, transfer: Transfer) -> None:
        """See ``Transport``. Statuses of anything but a success are kept until the engine is gone."""
        assert isinstance(transfer, MoriTransfer), "made by submit()"
        peer = self._moving.pop(transfer, None)
        if peer is not None:
            peer.weight -= transfer.weight
            with suppress(ValueError):  # nothing of it was held back
                peer.waiting.remove(transfer)
        if transfer.pending or not transfer.proven:
            self._kept.append(transfer.statuses)

    # -- the owner thread's wait -----------------------------------------------------------------------------------

    def wait(self, timeout_s: float) -> None:
        """See ``Transport``."""
        deadline = monotonic() + timeout_s
        while not self._bell.is_set() and (left := deadline - (now := monotonic())) > 0.0:
            if self._look(thorough=False):
                break
            oldest = next((transfer for transfer in self._moving if transfer.pending), None)
            if oldest is None:
                self._bell.wait(left)
            elif now - self._moved_at > STALL_S:
                self._bell.wait(min(left, STALL_LOOK_S))
            else:
                self._engine.wait_all(oldest.pending[-1:], SLICE_MS)
        self._bell.clear()

    def wake(self) -> None:
        """See ``Transport``."""
        self._bell.set()

    def close(self) -> None:
        """See ``Transport``. The engine goes first, with its threads; only then what they may have written to."""
        if self._closed:
            return
        self._closed = True
        try:
            for peer in list(self._peers):
                self.remove_peer(peer)
            self.deregister_memory(list(self._memory))
        finally:
            self._engine = None
            self._moving.clear()
            self._kept.clear()


def orphans(error: BaseException) -> list[Any]:
    """Lists that only the frames of a call that raised still hold: the statuses that MORI's Python layer made are one."""
    found: list[Any] = []
    trace = error.__traceback__
    while trace is not None:
        found += [value for value in trace.tb_frame.f_locals.values() if isinstance(value, list)]
        trace = trace.tb_next
    return found
