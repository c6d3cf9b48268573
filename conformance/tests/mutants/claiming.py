"""Backends whose capabilities are not what they say."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from conformance.tests.mutants.base import mutant
from conformance.tests.mutants.copying import Changed
from conformance.tests.mutants.references import Modest
from kv_core import BackendRecord, Capability, KVArgs, Role, TransferConfig, TransferState, TransportError
from kv_core.contract.observers import Observers
from kv_core.contract.transport import CopyList, PeerKey, Prepared, Transfer, TransferBatch, Transport, TransportContext
from kv_core.runtime import CommonKVManager
from kv_fake import FakeTransport
from kv_fake.nic import Inbound
from kv_fake.outbound import FakeTransfer

# -- cancel ------------------------------------------------------------------------------------------------------------


@mutant("cancel_does_nothing", "KV-ABORT-17")
class CancelDoesNothing(FakeTransport):
    """Who declares CANCEL ends a transfer early: here nothing happens."""

    def cancel(self, transfer: Transfer) -> None:
        return


@mutant("cancel_lies", "KV-ABORT-17")
class CancelLies(FakeTransport):
    """A cancelled transfer is quiescent when it is certain that nothing can land: here at once, and its bytes still leave."""

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, FakeTransfer)
        if transfer.state is TransferState.PENDING:
            transfer.fail("cancelled", quiescent=True)


@mutant("cancel_undoes", "KV-ABORT-16")
class CancelUndoes(FakeTransport):
    """To cancel a transfer that is done changes nothing: here it makes it a failure."""

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, FakeTransfer)
        super().cancel(transfer)
        if transfer.state is TransferState.DONE:
            transfer.fail("cancelled", quiescent=True)


@mutant("cancel_ends_the_connection", "KV-ABORT-7")
class CancelEndsTheConnection(FakeTransport):
    """To cancel a transfer ends that one: here the connection, and whatever else is on it."""

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, FakeTransfer)
        outbound = self._peers.get(transfer.peer)
        connection = outbound.connection if outbound is not None else None
        if outbound is not None and connection is not None and transfer.state is TransferState.PENDING:
            outbound._lost(connection, "a transfer on it was cancelled", proof=False)
        super().cancel(transfer)


# -- fence -------------------------------------------------------------------------------------------------------------


@mutant("fence_does_nothing", "KV-ABORT-18")
class FenceDoesNothing(FakeTransport):
    """Who declares FENCE stops a peer's bytes: here nothing happens."""

    def fence(self, peer: PeerKey) -> None:
        return


@mutant("fence_lets_in_again", "KV-ABORT-18")
class FenceLetsInAgain(FakeTransport):
    """A fence holds for ever: here it ends the connections that there are, and lets the same generation make a new one."""

    def fence(self, peer: PeerKey) -> None:
        super().fence(peer)
        self._nic._fenced.pop(peer.name, None)


@mutant("fence_stops_the_future", "KV-ABORT-18")
class FenceStopsTheFuture(FakeTransport):
    """A fence is for one generation and earlier ones: here also for all that come."""

    def fence(self, peer: PeerKey) -> None:
        self._nic.fence(peer.name, 2**62)


@mutant("fence_stops_everybody", "KV-ABORT-18")
class FenceStopsEverybody(FakeTransport):
    """A fence is for one peer: here for everybody who is connected."""

    def fence(self, peer: PeerKey) -> None:
        with self._nic._lock:
            greetings = [one.preamble for one in self._nic._inbound if one.preamble is not None]
        for writer in {greeting.writer for greeting in greetings} | {peer.name}:
            self._nic.fence(writer, 2**62 if writer != peer.name else peer.generation)


@mutant("fence_spares_earlier_generations", "KV-ABORT-18")
class FenceSparesEarlierGenerations(FakeTransport):
    """A fence is also for the generations before: here only for the one that is named."""

    def fence(self, peer: PeerKey) -> None:
        self._nic._end(
            [one for one in self._inbound(peer) if one.preamble and one.preamble.generation == peer.generation]
        )

    def _inbound(self, peer: PeerKey) -> list[Inbound]:
        with self._nic._lock:
            return [one for one in self._nic._inbound if one.preamble is not None and one.preamble.writer == peer.name]


@mutant("fence_does_not_wait", "KV-ABORT-19")
class FenceDoesNotWait(FakeTransport):
    """After a fence no byte lands: here what is landing at that moment goes on."""

    def fence(self, peer: PeerKey) -> None:
        nic: Any = self._nic
        end, nic._end = nic._end, _mark
        try:
            super().fence(peer)
        finally:
            nic._end = end


def _mark(doomed: Sequence[Inbound]) -> None:
    for one in doomed:
        one.ended = True


@mutant("fence_waits_for_the_writer", "KV-ABORT-20")
class FenceWaitsForTheWriter(FakeTransport):
    """A fence needs nothing of the writer: here it waits until what he has begun has landed."""

    def fence(self, peer: PeerKey) -> None:
        with self._nic._lock:
            landing = [
                one for one in self._nic._inbound if one.preamble is not None and one.preamble.writer == peer.name
            ]
        for one in landing:
            with one.gate:
                one.ended = True
        super().fence(peer)


# -- probe -------------------------------------------------------------------------------------------------------------


@mutant("probe_is_always_true", "KV-LIVE-8")
class ProbeIsAlwaysTrue(FakeTransport):
    """A peer that died can't be reached: here the probe says that it can."""

    def probe(self, peer: PeerKey) -> bool:
        return peer in self._peers


@mutant("probe_is_always_false", "KV-LIVE-8")
class ProbeIsAlwaysFalse(FakeTransport):
    """A peer that lives can be reached: here the probe says that it can't."""

    def probe(self, peer: PeerKey) -> bool:
        return False


@mutant("probe_raises", "KV-LIVE-8")
class ProbeRaises(FakeTransport):
    """A probe never raises: here it does for a peer that can't be reached."""

    def probe(self, peer: PeerKey) -> bool:
        if not super().probe(peer):
            raise TransportError("the peer can't be reached", quiescent=True)
        return True


# -- what is not declared ----------------------------------------------------------------------------------------------


@mutant("hidden_cancel", "KV-ABORT-16", like="modest")
class HiddenCancel(Modest):
    """What is not declared is refused: here CANCEL works."""

    def cancel(self, transfer: Transfer) -> None:
        FakeTransport.cancel(self, transfer)


@mutant("hidden_fence", "KV-ABORT-18", like="modest")
class HiddenFence(Modest):
    """What is not declared is refused: here FENCE works."""

    def fence(self, peer: PeerKey) -> None:
        FakeTransport.fence(self, peer)


@mutant("hidden_probe", "KV-LIVE-8", like="modest")
class HiddenProbe(Modest):
    """What is not declared is refused: here PROBE works."""

    def probe(self, peer: PeerKey) -> bool:
        return FakeTransport.probe(self, peer)


@mutant("refuses_with_the_wrong_type", "KV-LIVE-8", like="modest")
class RefusesWithTheWrongType(Modest):
    """What is not declared is refused with ``NotSupported``: here with a ``TransportError``."""

    def probe(self, peer: PeerKey) -> bool:
        raise TransportError("there is no probe", quiescent=True)


class _Everything(CommonKVManager):
    @classmethod
    def create(
        cls, record: BackendRecord, role: Role, args: KVArgs, config: TransferConfig, observers: Observers
    ) -> CommonKVManager:
        return super().create(replace(record, info=replace(record.info, capabilities=frozenset(Capability))), role, args, config, observers)  # fmt: skip


@mutant("takes_any_memory", "KV-CAP-5")
class TakesAnyMemory(_Everything):
    """A pool in memory that is not declared is refused: here a manager is made, CUDA or not, ROCm or not."""


@mutant("takes_rocm_memory", "KV-CAP-6")
class TakesRocmMemory(_Everything):
    """A pool in ROCm memory is refused where ROCM is not declared: here a manager is made."""


@mutant("takes_any_pool", "KV-CAP-4", like="modest")
class TakesAnyPool(_Everything):
    """A state pool is refused where STATE is not declared: here a manager is made."""


@mutant("writes_when_it_should_read", "KV-CAP-2", also={Capability.READ})
class WritesWhenItShouldRead(FakeTransport):
    """Who declares READ copies from remote to local memory: here the other way."""

    def __init__(self, context: TransportContext) -> None:
        super().__init__(replace(context, direction=type(context.direction).WRITE))


@mutant("reads_undeclared", "KV-CAP-2")
class ReadsUndeclared(FakeTransport):
    """A direction that is not declared is refused by the constructor: here it is taken for the other one."""

    def __init__(self, context: TransportContext) -> None:
        super().__init__(replace(context, direction=type(context.direction).WRITE))


@mutant("cancel_is_not_there", "KV-CAP-8")
class CancelIsNotThere(FakeTransport):
    """Who declares CANCEL has a method for it: here there is none."""

    cancel = Transport.cancel


@mutant("writes_its_own_memory", "KV-CAP-1")
class WritesItsOwnMemory(FakeTransport):
    """WRITE leaves local memory as it is: here the first byte of each batch's source is cleared when it was handed over."""

    def submit(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        transfer = super().submit(prepared, batch)
        if transfer.pieces is not None and transfer.nbytes:
            copies = batch.copies()
            region = prepared.plan.local_regions[int(copies.local_region[0])]
            ctypes.memset(region.address + int(copies.local_offset[0]), 0, 1)
        return transfer


@mutant("row_goes_with_pages_only", "KV-CAP-3")
class RowGoesWithPagesOnly(FakeTransport):
    """A row of the auxiliary pool may be a batch of its own: here it is left out then."""

    def frame(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        if [part.plan.pool for part in batch.slices] == ["aux"]:
            nothing = CopyList(*(column[:0] for column in batch.copies()))
            return super().frame(prepared, Changed(batch, nothing))
        return super().frame(prepared, batch)


@mutant("needs_a_setting", "KV-CAP-7", harness="SettingHarness")
class NeedsASetting(FakeTransport):
    """EMBEDDED needs no setting: here a device has to be named."""

    def __init__(self, context: TransportContext) -> None:
        options = dict(context.config.options)
        if options.pop("device", None) is None:
            raise TransportError("which device? options['device'] is missing", quiescent=True)
        super().__init__(with_options(context, options))


@mutant("takes_unknown_options", "KV-ID-11")
class TakesUnknownOptions(FakeTransport):
    """An option that the backend does not know is refused with its name: here it is ignored."""

    def __init__(self, context: TransportContext) -> None:
        known = {name: value for name, value in context.config.options.items() if name in ("faults", "seed")}
        super().__init__(with_options(context, known))


@mutant("fabric_of_the_peer", "KV-CAP-9")
class FabricOfThePeer(FakeTransport):
    """``describe`` names the fabric, which is the same for equal peers: here it has the peer's name in it."""

    def describe(self, peer: PeerKey) -> str:
        return f"tcp {peer.name[:6]}"


def with_options(context: TransportContext, options: Mapping[str, object]) -> TransportContext:
    """The same context with other options."""
    return replace(context, config=replace(context.config, options=options))
