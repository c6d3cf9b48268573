"""Backends that get their peers wrong."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator, Sequence

from conformance.tests.mutants.base import mutant
from kv_core import TransportError
from kv_core.contract.transport import (
    PeerKey,
    Transfer,
    TransferPlan,
    TransferProgress,
    TransportContext,
)
from kv_fake import FakeTransport
from kv_fake.outbound import FakeTransfer, Outbound
from kv_fake.transport import FakePrepared
from kv_fake.wire import TOKEN_BYTES, Descriptor


@mutant("descriptor_is_not_checked", "KV-PEER-1")
class DescriptorIsNotChecked(FakeTransport):
    """A descriptor that makes no sense is a ``TransportError``: here whatever the unpacking raises."""

    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        (port,) = struct.unpack_from("<H", descriptor)
        descriptor[2 + TOKEN_BYTES :].decode("ascii")
        if port == 0:
            raise ZeroDivisionError("no port")
        super().add_peer(peer, descriptor)


@mutant("descriptor_is_believed", "KV-PEER-1")
class DescriptorIsBelieved(FakeTransport):
    """A descriptor that makes no sense is refused by ``add_peer``: here it is taken as it is."""

    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        try:
            super().add_peer(peer, descriptor)
        except TransportError:
            super().add_peer(peer, Descriptor("127.0.0.1", 1, bytes(TOKEN_BYTES)).pack())


@mutant("removed_peer_is_still_served", "KV-PEER-3")
class RemovedPeerIsStillServed(FakeTransport):
    """Submissions to a removed peer are refused at once: here they still go there."""

    kept: dict[PeerKey, Outbound]

    def remove_peer(self, peer: PeerKey) -> None:
        outbound = self._peers.get(peer)
        if outbound is not None:
            self.kept = {**getattr(self, "kept", {}), peer: outbound}

    def close(self) -> None:
        for outbound in getattr(self, "kept", {}).values():
            outbound.close()
        super().close()


@mutant("remove_of_strangers_raises", "KV-PEER-3")
class RemoveOfStrangersRaises(FakeTransport):
    """An unknown peer is ignored by ``remove_peer``: here it is an error."""

    def remove_peer(self, peer: PeerKey) -> None:
        if peer not in self._peers:
            raise TransportError(f"peer {peer.name[:8]} is not known", quiescent=True)
        super().remove_peer(peer)


@mutant("huge_descriptor", "KV-PEER-2")
class HugeDescriptor(FakeTransport):
    """A descriptor has at most 1 MiB: here it has a page for each registered buffer, which is more where there are many."""

    def local_descriptor(self) -> bytes:
        buffers = len(self._memory._regions)
        return super().local_descriptor() + bytes(buffers * 8192 if buffers > 100 else 0)

    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        super().add_peer(peer, descriptor.rstrip(b"\0") if len(descriptor) > 8192 else descriptor)


@mutant("descriptor_is_used_up", "KV-PEER-2")
class DescriptorIsUsedUp(FakeTransport):
    """A descriptor stays good when others are made: here it is good for nothing once there is a newer one."""

    def local_descriptor(self) -> bytes:
        self._nic.token = secrets.token_bytes(TOKEN_BYTES)
        return super().local_descriptor()


@mutant("remove_forgets_what_is_outstanding", "KV-ABORT-12")
class RemoveForgetsWhatIsOutstanding(FakeTransport):
    """Transfers that are outstanding to a removed peer stay in ``progress``: here nothing is heard of them any more."""

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        for record in super().progress(transfers):
            if record.transfer.peer in self._peers or (record.quiescent and not record.transfer.started):
                yield record


@mutant("removed_is_quiescent", "KV-ABORT-12")
class RemovedIsQuiescent(FakeTransport):
    """Outstanding transfers to a removed peer are quiescent when no byte can land any more: here at once."""

    def remove_peer(self, peer: PeerKey) -> None:
        outbound = self._peers.pop(peer, None)
        if outbound is not None:
            self._removed.append(outbound)  # which goes on sending: what the peer has not read yet is to land for sure
            for transfer in outbound._posted.values():
                transfer.fail("the peer was removed", quiescent=True)


@mutant("remove_waits", "KV-ABORT-12")
class RemoveWaits(FakeTransport):
    """``remove_peer`` does not wait for what is outstanding: here it does."""

    def remove_peer(self, peer: PeerKey) -> None:
        outbound = self._peers.get(peer)
        while outbound is not None and not outbound.idle:
            self.wait(0.1)
        super().remove_peer(peer)


@mutant("generation_is_ignored", "KV-PEER-4")
class GenerationIsIgnored(FakeTransport):
    """What was prepared for a generation of a peer ends with it: here it goes to the next one."""

    def post(self, transfer: FakeTransfer) -> None:
        if transfer.peer not in self._peers:
            transfer.peer = next((peer for peer in self._peers if peer.name == transfer.peer.name), transfer.peer)
        super().post(transfer)


@mutant("prepares_for_strangers", "KV-PEER-3")
class PreparesForStrangers(FakeTransport):
    """``prepare`` knows the peers that were added: here it takes any, and submissions go nowhere."""

    def prepare(self, peer: PeerKey, plan: TransferPlan) -> FakePrepared:
        return FakePrepared(peer, plan)

    def post(self, transfer: FakeTransfer) -> None:
        if transfer.peer in self._peers:
            super().post(transfer)


@mutant("nameless_fabric", "KV-PEER-6")
class NamelessFabric(FakeTransport):
    """``describe`` names the fabric in use: here it is empty."""

    def describe(self, peer: PeerKey) -> str:
        return ""


@mutant("describe_raises", "KV-PEER-6")
class DescribeRaises(FakeTransport):
    """``describe`` answers with a text: here it raises what is no error of kv-core."""

    def describe(self, peer: PeerKey) -> str:
        raise KeyError(peer)


@mutant("connection_for_each_generation", "KV-PEER-7")
class ConnectionForEachGeneration(FakeTransport):
    """A removed peer leaves nothing behind: here its connection stays open."""

    def __init__(self, context: TransportContext) -> None:
        self.left: list[Outbound] = []
        super().__init__(context)

    def remove_peer(self, peer: PeerKey) -> None:
        outbound = self._peers.get(peer)
        if outbound is not None and outbound.idle:
            self.left.append(self._peers.pop(peer))
            if outbound in self._watched:
                self._selector.unregister(self._watched.pop(outbound))
        super().remove_peer(peer)

    def close(self) -> None:
        for outbound in self.left:
            outbound.close()
        super().close()


@mutant("refuses_a_second_peer", "KV-PEER-5")
class RefusesASecondPeer(FakeTransport):
    """A transport talks to any number of peers: here to one."""

    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        if self._peers:
            raise TransportError("there is a peer already", quiescent=True)
        super().add_peer(peer, descriptor)
