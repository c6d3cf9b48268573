"""The receiving side's check: writes auxiliary rows that came by message, and hashes what has arrived."""

from __future__ import annotations

from collections.abc import Callable

from kv_core.contract.transport import PeerKey, TransferPlan
from kv_core.protocol.effects import VerifyDigests
from kv_core.protocol.messages import ChunkDigest
from kv_core.protocol.rooms import Offer
from kv_core.runtime.transfer.aux import AuxDataCodec
from kv_core.runtime.transfer.digest import Hasher, covered, name_of

PlanFor = Callable[[PeerKey, object], TransferPlan]
"""Makes the plan between a peer's layout and ours as the *peer* made it, seen from here."""


class Verifier:
    """Performs ``VerifyDigests``. Owner thread only."""

    def __init__(self, hasher: Hasher, codec: AuxDataCodec, plan_for: PlanFor) -> None:
        self._hasher = hasher
        self._codec = codec
        self._plan_for = plan_for

    def problem(self, effect: VerifyDigests) -> str | None:
        """None if everything agrees, else a sentence that names the chunk. Raises what reading memory raises."""
        room, offer = effect.room, effect.room.offer
        if room.ended or offer is None:
            return "the room ended before its bytes were verified"
        if effect.aux_rows:
            wrong = self._write_aux(offer, effect.aux_rows)
            if wrong is not None:
                return wrong
        if not effect.digests:
            return None
        peer = effect.link.peer
        plan = self._plan_for(peer.key, peer.layout)
        for told in effect.digests:
            wrong = self._compare(told, offer, plan)
            if wrong is not None:
                return wrong
        return None

    def _write_aux(self, offer: Offer, rows: tuple[bytes, ...]) -> str | None:
        if offer.aux_index is None:
            return "an auxiliary row arrived, but the room offered no aux_index"
        try:
            self._codec.decode(offer.aux_index, rows)
        except ValueError as error:
            return str(error)
        return None

    def _compare(self, told: ChunkDigest, offer: Offer, plan: TransferPlan) -> str | None:
        try:
            batch = covered(told, offer, plan)
        except ValueError as error:
            return f"a digest came for {error}"
        found = self._hasher.digest(batch)
        if found == told.digest:
            return None
        return (
            f"{name_of(told)}: prefill read bytes with digest {told.digest:016x}, here arrived bytes with digest "
            f"{found:016x}"
        )
