"""Who may still touch whose pages: one ledger for the side that moves the bytes, and one for the side that is moved on.

In push prefill moves: it writes into decode's pages. In pull decode does: it reads from prefill's. Who moves counts what
its transport has not proven quiescent (``RoomLink.outstanding``), and says so when a room or a session that has ended is
quiet. Who is moved on keeps its pages (``RoomLink.exposed``) until it hears that, or has another proof.
"""

from __future__ import annotations

from typing import Any

from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import Direction, FailureCode, FailureStage, Side
from kv_core.contract.failures import Failure
from kv_core.contract.moments import CHUNK_FAILED, CHUNK_QUIET, POSTED, PROOF
from kv_core.contract.transport import PeerKey
from kv_core.protocol import messages as msg
from kv_core.protocol.chunks import TransferKVChunk
from kv_core.protocol.effects import Effect, FencePeer, ProveDeath
from kv_core.protocol.handshake import LayoutRules, PeerLayout
from kv_core.protocol.identity import Identity
from kv_core.protocol.machine import Machine
from kv_core.protocol.peers import Peer, PeerPhase
from kv_core.protocol.rooms import U64, Room, RoomLink


class Quiescence(Machine):
    """What both sides know of bytes that may still move. See ``Machine`` for the rules of calling it."""

    def __init__(self, me: Identity, settings: TransferConfig, rules: LayoutRules) -> None:
        super().__init__(me, settings, rules)
        self.moves = me.moves
        self._what = "writes" if me.direction is Direction.WRITE else "reads"
        self._old: dict[str, set[RoomLink]] = {}  # links of ended sessions that are still outstanding, by instance
        self._orphans: dict[str, list[RoomLink]] = {}  # exposed links of ended sessions, by instance
        self._on_timer["reconcile"] = self._reconcile
        if not self.moves:
            self._on_message |= {
                msg.Quiesced: self._on_quiesced, msg.SessionQuiesced: self._on_session_quiesced,
            }  # fmt: skip

    # -- who moves -------------------------------------------------------------------------------------------------

    def claim_chunk(self, chunk: TransferKVChunk, now: float) -> tuple[bool, list[Effect]]:
        """May the chunk be posted? From a yes on it counts as outstanding until it is reported quiescent."""
        room, link = chunk.room, chunk.link
        if room.ended or link.peer.phase is PeerPhase.GONE:
            return False, self._settle(now)
        chunk.claimed = True
        link.outstanding += 1
        room.last_move = now
        room.note((now, POSTED, chunk.number, link.peer.name))
        self._claimed(room, now)
        return True, self._settle(now)

    def _claimed(self, room: Room, now: float) -> None:
        """A chunk of the room is taken up."""

    def chunk_failed(self, chunk: TransferKVChunk, message: str, now: float, *, quiescent: bool) -> list[Effect]:
        """The chunk failed. Unless quiescent it stays outstanding until ``chunk_quiescent``."""
        chunk.settled = True
        chunk.room.note((now, CHUNK_FAILED, chunk.number, chunk.link.peer.name, quiescent))
        self._fail(
            chunk.room, FailureCode.TRANSPORT_ERROR, message, Side.FABRIC, now=now, stage=FailureStage.TRANSFER,
            retryable=True, peer=chunk.link.peer,
        )  # fmt: skip
        if quiescent:
            self._one_quiescent(chunk.link, now)
        return self._settle(now)

    def chunk_quiescent(self, chunk: TransferKVChunk, now: float) -> list[Effect]:
        """No byte of a failed or abandoned chunk can move any more."""
        chunk.room.note((now, CHUNK_QUIET, chunk.number, chunk.link.peer.name))
        self._one_quiescent(chunk.link, now)
        return self._settle(now)

    def _one_quiescent(self, link: RoomLink, now: float) -> None:
        link.outstanding -= 1
        if link.outstanding == 0 and link.room.ended:
            self._link_quiet(link, now)

    def _link_quiet(self, link: RoomLink, now: float) -> None:
        self._let_go(link)
        self._say_quiesced(link)
        self._forget_old(link)
        self._settle_room(link.room, now)

    def _say_quiesced(self, link: RoomLink) -> None:
        if link.owes_quiesced and not link.outstanding:
            link.owes_quiesced = False
            self._push(link.peer, msg.Quiesced(link.room.number, link.life))

    @staticmethod
    def _let_go(link: RoomLink) -> None:
        """The room has ended: what the peer says of it finds nobody, unless a proof is owed to it or by it."""
        if not (link.outstanding or link.exposed):
            link.peer.rooms.pop(link.life, None)

    def _forget_old(self, link: RoomLink) -> None:
        """A link is quiet; if it was the last one of its instance's ended sessions, the instance is told."""
        name = link.peer.name
        old = self._old.get(name)
        if old is not None:
            old.discard(link)
            if not old:
                del self._old[name]
                self._say_session_quiesced(self.peers.get(name))

    def _say_session_quiesced(self, peer: Peer | None) -> None:
        if self.moves and peer is not None and peer.phase is PeerPhase.READY and peer.name not in self._old:
            self._push(peer, msg.SessionQuiesced(peer.session - 1))

    def _is_quiet(self, name: str, session: int) -> bool:
        # For decode alone: it mints the sessions, so that one which has ended here can never begin once more.
        if not (self.moves and self.me.direction is Direction.READ):
            return False
        return not any(link.peer.session <= session for link in self._old.get(name, ()))

    # -- who is moved on -------------------------------------------------------------------------------------------

    def _on_quiesced(self, peer: Peer, message: msg.Quiesced, now: float) -> None:
        link = peer.rooms.get(message.life)
        if link is None or not link.room.ended:
            self.counters["stale_messages"] += 1
            return
        self._unexpose(link, f"{self.me.role.peer.value} acknowledged that its {self._what} have ended", now)
        self._let_go(link)

    def _on_session_quiesced(self, peer: Peer, message: msg.SessionQuiesced, now: float) -> None:
        proof = f"{self.me.role.peer.value} said that the session's {self._what} have ended"
        self._unexpose_orphans(peer.name, min(message.session, peer.session - 1), proof, now)

    def _on_bye(self, peer: Peer, packet: msg.Bye, now: float) -> None:
        if packet.quiescent and not self.moves:
            proof = f"{self.me.role.peer.value} closed, its {self._what} had ended"
            for link in peer.rooms.values():
                self._note_proof(link, proof, now)
            self._unexpose_orphans(peer.name, peer.session, proof, now)
        super()._on_bye(peer, packet, now)

    def _on_reset(self, packet: msg.Reset, now: float) -> None:
        if packet.about in self._orphans:
            if packet.sender == packet.about and packet.quiescent:
                proof = f"{self.me.role.peer.value} answered that the session's {self._what} have ended"
                self._unexpose_orphans(packet.about, packet.session, proof, now)
            elif packet.sender != packet.about:
                self._timers.cancel(("reconcile", packet.about))  # nobody is left who could answer
        super()._on_reset(packet, now)

    def _shut_out(self, peer: Peer, failure: Failure, now: float, *, by_us: bool) -> None:
        if by_us or self.moves:
            return  # the peer may have begun to move: it says in a new session, or when it is asked, that this has ended
        for link in peer.rooms.values():
            link.exposed = False
            link.reading.clear()
            link.proof = f"{self.me.role.peer.value} refused the session before a byte moved"

    def _note_proof(self, link: RoomLink, proof: str, now: float) -> None:
        link.exposed = False
        link.reading.clear()
        link.proof = proof
        link.room.note((now, PROOF, link.peer.name, proof))

    def _unexpose(self, link: RoomLink, proof: str, now: float) -> None:
        self._note_proof(link, proof, now)
        self._settle_room(link.room, now)

    def _unexpose_orphans(self, name: str, session: int, proof: str, now: float) -> None:
        links = self._orphans.pop(name, [])
        rest = [link for link in links if link.peer.session > session]
        if rest:
            self._orphans[name] = rest
        for link in links:
            if link.peer.session <= session:
                self._unexpose(link, proof, now)
        if links and not rest:
            self._stop_asking(links[-1].peer)

    def on_fenced(self, key: PeerKey, now: float) -> list[Effect]:
        """The transport proved that this generation, or an earlier one, of the peer can touch nothing here any more."""
        self._unexpose_orphans(key.name, key.generation, "fenced off by the transport", now)
        return self._settle(now)

    def on_fence_failed(self, key: PeerKey, now: float) -> list[Effect]:
        """No fence: the next best proof is the end of the process."""
        for link in self._orphans.get(key.name, [])[:1]:
            self._watch_process(link.peer)
        return self._settle(now)

    def on_proven_dead(self, name: str, now: float) -> list[Effect]:
        """The process is proven to have ended: it moves nothing more, in any session."""
        doing = "writing" if self.me.direction is Direction.WRITE else "reading"
        self._unexpose_orphans(name, 2**63, f"the {doing} process has ended", now)
        return self._settle(now)

    def _watch_process(self, peer: Peer) -> None:
        process = peer.introduction.process if peer.introduction is not None else {}
        self._effects.append(ProveDeath(peer.key, process))

    def _owes_proof(self, name: str) -> bool:
        """Whether pages wait for this instance's word that what it moved has ended."""
        return name in self._orphans

    def _reconcile(self, name: str, now: float) -> None:
        """Pages wait for the word of a process that was lost, and that may live: get it."""
        raise NotImplementedError

    def _stop_asking(self, lost: Peer) -> None:
        """Nothing more is wanted of a process that was lost."""

    # -- both ------------------------------------------------------------------------------------------------------

    def _peer_gone(self, peer: Peer, links: list[RoomLink], now: float) -> None:
        outstanding = {link for link in links if link.outstanding}
        if self.moves and outstanding:
            self._old.setdefault(peer.name, set()).update(outstanding)
        exposed = [link for link in links if link.exposed]
        if (self._owes_proof(peer.name) or exposed) and not peer.replaced:
            self._timers.set(("reconcile", peer.name), now + self._patience_s)
        if exposed:
            self._orphans.setdefault(peer.name, []).extend(exposed)
            if self.me.can_fence:
                self._effects.append(FencePeer(peer.key))
            else:
                self._watch_process(peer)

    def _out_of_bounds(self, layout: PeerLayout, pool: str, items: U64) -> str | None:
        """Why a peer's indices can't be: too many, or there is no such item."""
        if items.size > self.settings.max_indices:
            return f"{items.size} items of pool {pool!r}, TransferConfig.max_indices is {self.settings.max_indices}"
        bound = layout.num_items(pool)
        if items.size and (bound is None or int(items.max()) >= bound):
            return f"item {int(items.max())} of pool {pool!r}, which has {bound or 0} items there"
        return None

    def snapshot(self) -> dict[str, Any]:
        """See ``Machine.snapshot``; adds what is outstanding, and what waits for a proof of a process that was lost."""
        outstanding = sum(link.outstanding for room in self.live.values() for link in room.links.values())
        return super().snapshot() | {
            "outstanding_chunks": outstanding, "old_sessions": len(self._old),
            "orphaned_links": sum(len(links) for links in self._orphans.values()),
        }  # fmt: skip

    def _missing_proof(self, link: RoomLink) -> str:
        verb = "write" if self.me.direction is Direction.WRITE else "read"
        if link.verifying:
            return "its digests and auxiliary rows are still being worked on"
        if link.outstanding and self.moves:
            where = "to" if self.me.direction is Direction.WRITE else "from"
            return (
                f"{link.outstanding} chunks {where} {link.peer} are not quiescent: the transport still owes the proof"
            )
        if link.outstanding:
            return f"{link.outstanding} chunks for {link.peer} are being prepared"
        if link.peer.phase is PeerPhase.GONE:
            proof = "a fence" if self.me.can_fence else "the end of its process, or its word in a new session"
            return f"{link.peer} is lost and may still {verb}: {proof} is missing"
        return f"{link.peer} has not acknowledged that its {self._what} have ended"
