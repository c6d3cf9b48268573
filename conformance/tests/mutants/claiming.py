"""Backends whose capabilities are not what they say."""

from __future__ import annotations

from collections.abc import Mapping

from kv_core import Capability, TransportError
from kv_core.contract.transport import PeerKey, Transfer, TransportContext
from kv_fake import FakeTransport
from kv_fake.outbound import FakeTransfer
from conformance.tests.mutants.base import mutant
from conformance.tests.mutants.references import Modest


@mutant("cancel_does_nothing", "KV-CAP-1")
class CancelDoesNothing(FakeTransport):
    """Who declares CANCEL ends a transfer early: here nothing happens."""

    def cancel(self, transfer: Transfer) -> None:
        return


@mutant("cancel_lies", "KV-CAP-2")
class CancelLies(FakeTransport):
    """A cancelled transfer is quiescent when it is certain that nothing can land: here at once, and its bytes still leave."""

    def cancel(self, transfer: Transfer) -> None:
        assert isinstance(transfer, FakeTransfer)
        transfer.fail("cancelled", quiescent=True)


@mutant("fence_does_nothing", "KV-CAP-3")
class FenceDoesNothing(FakeTransport):
    """Who declares FENCE stops a peer's bytes: here nothing happens."""

    def fence(self, peer: PeerKey) -> None:
        return


@mutant("fence_lets_in_again", "KV-CAP-4")
class FenceLetsInAgain(FakeTransport):
    """A fence holds for ever: here it ends the connections that there are, and lets the same generation make a new one."""

    def fence(self, peer: PeerKey) -> None:
        super().fence(peer)
        self._nic._fenced.pop(peer.name, None)


@mutant("fence_stops_the_future", "KV-CAP-5")
class FenceStopsTheFuture(FakeTransport):
    """A fence is for one generation and earlier ones: here also for all that come."""

    def fence(self, peer: PeerKey) -> None:
        self._nic.fence(peer.name, 2**62)


@mutant("fence_stops_everybody", "KV-CAP-6")
class FenceStopsEverybody(FakeTransport):
    """A fence is for one peer: here for everybody who is connected."""

    def fence(self, peer: PeerKey) -> None:
        with self._nic._lock:
            writers = {one.preamble.writer for one in self._nic._inbound if one.preamble is not None}
        for writer in writers | {peer.name}:
            self._nic.fence(writer, peer.generation)


@mutant("fence_spares_earlier_generations", "KV-CAP-7")
class FenceSparesEarlierGenerations(FakeTransport):
    """A fence is also for the generations before: here only for the one that is named."""

    def fence(self, peer: PeerKey) -> None:
        nic = self._nic
        with nic._lock:
            doomed = [
                one
                for one in nic._inbound
                if one.preamble is not None and one.preamble[1:3] == (peer.name, peer.generation)
            ]
        nic._end(doomed)


@mutant("probe_is_always_true", "KV-CAP-8")
class ProbeIsAlwaysTrue(FakeTransport):
    """A peer that died can't be reached: here the probe says that it can."""

    def probe(self, peer: PeerKey) -> bool:
        return True


@mutant("probe_is_always_false", "KV-CAP-9")
class ProbeIsAlwaysFalse(FakeTransport):
    """A peer that lives can be reached: here the probe says that it can't."""

    def probe(self, peer: PeerKey) -> bool:
        return False


@mutant("probe_raises", "KV-CAP-10")
class ProbeRaises(FakeTransport):
    """A probe never raises: here it does for a peer that can't be reached."""

    def probe(self, peer: PeerKey) -> bool:
        if not super().probe(peer):
            raise TransportError("the peer can't be reached", quiescent=True)
        return True


@mutant("hidden_cancel", "KV-CAP-1", like="modest")
class HiddenCancel(Modest):
    """What is not declared is refused: here CANCEL works."""

    def cancel(self, transfer: Transfer) -> None:
        FakeTransport.cancel(self, transfer)


@mutant("hidden_fence", "KV-CAP-3", like="modest")
class HiddenFence(Modest):
    """What is not declared is refused: here FENCE works."""

    def fence(self, peer: PeerKey) -> None:
        FakeTransport.fence(self, peer)


@mutant("hidden_probe", "KV-CAP-8", like="modest")
class HiddenProbe(Modest):
    """What is not declared is refused: here PROBE works."""

    def probe(self, peer: PeerKey) -> bool:
        return FakeTransport.probe(self, peer)


@mutant("refusal_of_the_wrong_type", "KV-CAP-8", like="modest")
class RefusalOfTheWrongType(Modest):
    """What is not declared is refused with ``NotSupported``: here with a ``TransportError``."""

    def probe(self, peer: PeerKey) -> bool:
        raise TransportError("there is no probe", quiescent=True)


@mutant("declares_cuda", "KV-CAP-11", also={Capability.CUDA})
class DeclaresCuda(FakeTransport):
    """Who declares CUDA moves CUDA memory: here host memory only."""


@mutant("takes_unknown_options", "KV-ID-1")
class TakesUnknownOptions(FakeTransport):
    """An option that the backend does not know is refused with its name: here it is ignored."""

    def __init__(self, context: TransportContext) -> None:
        given: Mapping[str, object] = context.config.options
        known = {name: value for name, value in given.items() if name in ("faults", "seed")}
        super().__init__(_with_options(context, known))


def _with_options(context: TransportContext, options: Mapping[str, object]) -> TransportContext:
    from dataclasses import replace

    return replace(context, config=replace(context.config, options=options))
