"""The receiving side's check: writes auxiliary rows that came by message, and hashes what has arrived."""

from __future__ import annotations

from collections.abc import Callable

from kv_core.contract.transport import TransferPlan
from kv_core.layout import Placement
from kv_core.protocol.effects import VerifyDigests
from kv_core.protocol.messages import ChunkDigest
from kv_core.protocol.peers import Peer
from kv_core.protocol.rooms import Offer
from kv_core.runtime.transfer.aux import AuxDataCodec
from kv_core.runtime.transfer.digest import Hasher, covered, name_of

PlanFor = Callable[[Peer], tuple[TransferPlan, Placement]]
"""What moves from a peer to us, in the order in which the peer moves it."""


class Verifier:
    """Performs ``VerifyDigests``. Owner thread only."""

    def __init__(self, hasher: Hasher, codec: AuxDataCodec, plan_for: PlanFor, max_pages: int) -> None:
        self._hasher = hasher
        self._codec = codec
        self._plan_for = plan_for
        self._max_pages = max_pages

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
        plan, placement = self._plan_for(effect.link.peer)
        for told in effect.digests:
            wrong = self._compare(told, offer, plan, placement)
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

    def _compare(self, told: ChunkDigest, offer: Offer, plan: TransferPlan, placement: Placement) -> str | None:
        try:
            batch = covered(told, offer, plan, placement, self._max_pages)
        except ValueError as error:
            return f"a digest came for {error}"
        found = self._hasher.digest(batch)
        if found == told.digest:
            return None
        return (
            f"{name_of(told)}: prefill read bytes with digest {told.digest:016x}, here arrived bytes with digest "
            f"{found:016x}"
        )
