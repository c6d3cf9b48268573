"""Backends with nothing broken, which must be all green before anything else counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import monotonic

from conformance.tests.mutants.base import FAKE, mutant
from kv_core import Capability, NotSupported, TransferState
from kv_core.contract.transport import (
    PeerKey,
    Prepared,
    Transfer,
    TransferBatch,
    TransferProgress,
    TransportContext,
)
from kv_fake import FakeTransport
from kv_fake.outbound import FakeTransfer


@mutant("reference", "", like="reference")
class Reference(FakeTransport):
    """Nothing is broken: kv-fake under another name."""


@mutant("timed", "", also={Capability.ENGINE_LATENCY})
class Timed(FakeTransport):
    """Nothing is broken, and each transfer's own time is told."""

    def __init__(self, context: TransportContext) -> None:
        self.begun: dict[Transfer, float] = {}
        super().__init__(context)

    def submit(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        begun = monotonic()
        transfer = super().submit(prepared, batch)
        self.begun[transfer] = begun
        return transfer

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        for record in super().progress(transfers):
            if record.state is TransferState.DONE:
                yield record._replace(wire_seconds=self.seconds(record.transfer))
            else:
                yield record

    def seconds(self, transfer: Transfer) -> float:
        """How long it took."""
        return monotonic() - self.begun[transfer]

    def release(self, transfer: Transfer) -> None:
        self.begun.pop(transfer, None)
        super().release(transfer)


@mutant("modest", "", without=FAKE - {Capability.WRITE})
class Modest(FakeTransport):
    """Nothing is broken, and next to nothing can be done: what is not declared is refused."""

    def cancel(self, transfer: Transfer) -> None:
        raise NotSupported("cancel", "cancel")

    def fence(self, peer: PeerKey) -> None:
        raise NotSupported("fence", "fence")

    def probe(self, peer: PeerKey) -> bool:
        raise NotSupported("probe", "probe")


@mutant("reads", "", also={Capability.READ})
class Reads(FakeTransport):
    """Nothing is broken, and it reads as kv-fake does."""
