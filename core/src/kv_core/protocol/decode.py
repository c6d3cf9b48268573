"""The decode side: finds the prefill ranks, names its pages, and knows when all bytes are there, or that none can come."""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec.structs import replace

from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import FailureCode, FailureStage, Side
from kv_core.contract.failures import MessageError
from kv_core.contract.moments import BOUND, DONE, INIT, LANDED, NAMED, VERIFIED
from kv_core.contract.records import KVTransferMetric
from kv_core.contract.transport import PeerKey
from kv_core.protocol import messages as msg
from kv_core.protocol.chunks import ChunkResult, TransferKVChunk
from kv_core.protocol.discovery import Discovery
from kv_core.protocol.effects import AddPeer, Effect, SubmitChunk, VerifyDigests
from kv_core.protocol.handshake import Difference, LayoutRules, refusal
from kv_core.protocol.identity import Identity
from kv_core.protocol.lifecycle import Action, Event, Phase
from kv_core.protocol.peers import Peer, PeerPhase
from kv_core.protocol.pulling import chunk_of
from kv_core.protocol.rooms import Offer, Room, RoomLink


class DecodeMachine(Discovery):
    """Machine of a decode rank. See ``Machine`` for the rules of calling it."""

    def __init__(self, me: Identity, settings: TransferConfig, rules: LayoutRules, first_session: int = 1) -> None:
        super().__init__(me, settings, rules, first_session)
        self._actions |= {
            Action.OPEN_QUEUE: self._announce, Action.OFFER: self._offer, Action.VERIFY: self._verify,
            Action.CONCLUDE: self._conclude, Action.DRAIN: self._drain,
        }  # fmt: skip
        self._on_message |= {
            msg.Bound: self._on_bound, msg.Done: self._on_done, msg.Failed: self._on_failed,
            msg.Lease: self._on_lease,
        }  # fmt: skip
        if self.moves:
            self._on_message[msg.Readable] = self._on_readable

    # -- engine calls ----------------------------------------------------------------------------------------------

    def open(
        self, number: object, addr: str, now: float, *, traceparent: str | None = None
    ) -> tuple[Room, list[Effect]]:
        """Open a room."""
        room = self._open(number, addr, traceparent, now)
        return room, self._settle(now)

    def init(self, room: Room, prefill_dp_rank: int, now: float) -> list[Effect]:
        """The engine says which data-parallel rank of the prefill instance computes the prompt."""
        if room.ended:
            self.counters["ignored_init"] += 1
        elif room.initialised:
            self._invalid(room, "init() was called twice", now)
        else:
            room.initialised = True
            room.dp_rank = prefill_dp_rank
            room.note((now, INIT, prefill_dp_rank))
            self._find_sources(room, now)
        return self._settle(now)

    def offer(self, room: Room, offer: Offer, now: float) -> list[Effect]:
        """The engine names its pages; from now on they may be written."""
        if room.ended:
            self.counters["ignored_offers"] += 1
        elif not room.initialised:
            self._invalid(room, "send_metadata() came before init()", now)
        elif room.offer is not None:
            self._invalid(room, "send_metadata() was called twice", now)
        else:
            room.offer = offer
            room.note((now, NAMED, offer.kv.size, offer.decode_prefix_len))
            if room.phase is Phase.READY:
                self._apply(room, Event.OFFERED, now)
        return self._settle(now)

    # -- actions ---------------------------------------------------------------------------------------------------

    def _announce(self, room: Room, now: float) -> None:
        room.bootstrapped_at = now
        self._timers.cancel(("room", room.life))  # from here the engine's queue decides, and prefill's lease
        for link in room.links.values():
            link.announced = True
            self._push(link.peer, msg.Announce(room.number, link.life, link.destinations, room.traceparent))
        if room.offer is not None:
            self._apply(room, Event.OFFERED, now)

    def _offer(self, room: Room, now: float) -> None:
        offer = room.offer
        assert offer is not None, "offered"
        self._set_deadline(room, now + self.settings.waiting_timeout_s)
        metadata = self._metadata(room, offer)
        problem = self._too_long(metadata)
        if problem:
            self._fail(room, FailureCode.OVERLOADED, f"send_metadata(): {problem}", Side.DECODE, now=now)
            return
        for link in room.links.values():
            if not link.peer.meeting:
                self._expose(link, metadata)

    @staticmethod
    def _metadata(room: Room, offer: Offer) -> msg.Metadata:
        return msg.Metadata(
            room.number, room.life, msg.WireIndices.of(offer.kv),
            {pool: msg.WireIndices.of(items) for pool, items in offer.states.items()},
            offer.aux_index, offer.decode_prefix_len, max(link.destinations for link in room.links.values()),
        )  # fmt: skip

    def _expose(self, link: RoomLink, metadata: msg.Metadata) -> None:
        """Name the pages to a peer: from now on it may move bytes."""
        link.exposed = not (link.dummy or self.moves)
        link.owes_quiesced = self.moves and not link.dummy
        self._push(link.peer, replace(metadata, destinations=link.destinations))

    def _verify(self, room: Room, now: float) -> None:
        self._set_deadline(room, now + self.settings.transferring_timeout_s)
        for link in room.sources:
            if link.digests or link.aux_rows:
                link.verifying = True
                self._effects.append(VerifyDigests(room, link, tuple(link.digests), tuple(link.aux_rows)))
            else:
                link.verdict = True
        self._check_verdicts(room, now)

    def _check_verdicts(self, room: Room, now: float) -> None:
        if all(link.verdict for link in room.sources):
            self._apply(room, Event.AGREED, now)

    def on_verified(self, room: Room, link: RoomLink, problem: str | None, now: float) -> list[Effect]:
        """What arrived through this link was hashed: equal, or the sentence that says what is not."""
        link.verifying = False
        room.note((now, VERIFIED, link.peer.name, problem is None))
        if room.ended:
            self.counters["late_verdicts"] += 1
            self._settle_room(room, now)
        elif problem is None:
            link.verdict = True
            self._check_verdicts(room, now)
        else:
            self._fail(
                room, FailureCode.INTEGRITY, problem, Side.FABRIC, now=now, stage=FailureStage.INTEGRITY,
                retryable=True, peer=link.peer,
            )  # fmt: skip
        return self._settle(now)

    def _conclude(self, room: Room, now: float) -> None:
        for link in room.links.values():
            self._push(link.peer, msg.Concluded(room.number, link.life, None))
            self._let_go(link)

    def _drain(self, room: Room, now: float) -> None:
        self._leave_queues(room)
        assert room.failure is not None, "a failed room has a failure"
        failure = msg.WireFailure.of(room.failure)
        for link in room.links.values():
            if link.done:
                self._push(link.peer, msg.Concluded(room.number, link.life, failure))
            elif not link.announced:
                self._regret(link.peer, room.number, self._regret_of(room, link.destinations, failure))
            elif not link.told:
                self._push(link.peer, msg.Abort(room.number, link.life, failure))
            self._say_quiesced(link)
            self._let_go(link)
        if not room.links:
            self._regret_unlinked(room, failure, now)

    def _metric(self, room: Room, now: float) -> KVTransferMetric:
        offered = room.bound_at
        ready = room.bootstrapped_at
        return KVTransferMetric(
            transfer_latency_s=room.remote_wire_s, transfer_total_bytes=room.nbytes,
            alloc_latency_s=None if offered is None else offered - room.opened_at,
            bootstrap_latency_s=None if ready is None else ready - room.opened_at,
            queue_latency_s=None if ready is None or offered is None else offered - ready,
            total_latency_s=now - room.opened_at, chunks=room.chunks, latency_source=room.latency_source,
        )  # fmt: skip

    # -- messages --------------------------------------------------------------------------------------------------

    def _link(self, peer: Peer, life: int) -> RoomLink | None:
        link = peer.rooms.get(life)
        if link is None:
            self.counters["stale_messages"] += 1
        return link

    def _on_bound(self, peer: Peer, message: msg.Bound, now: float) -> None:
        link = self._link(peer, message.life)
        if link is None or link.room.ended:
            return
        if link.dummy:
            link.source_life = message.source_life
            return
        if link.room.phase is not Phase.OFFERED:
            self.counters["unexpected_messages"] += 1
            return
        link.source_life = message.source_life
        link.room.note((now, BOUND, peer.name, message.source_life))
        link.room.peer_traceparent = link.room.peer_traceparent or self._read_traceparent(message.traceparent)
        if all(each.source_life for each in link.room.sources):
            link.room.bound_at = now
            if self._apply(link.room, Event.BOUND, now):
                self._set_deadline(link.room, now + self.settings.transferring_timeout_s)

    def _on_readable(self, peer: Peer, message: msg.Readable, now: float) -> None:
        """Pull: pages that may be read. A room that has ended reads nothing more, whatever comes."""
        link = self._link(peer, message.life)
        if link is None or link.room.ended or message.source_life != link.source_life:
            self.counters["stale_chunks"] += 1
            return
        room = link.room
        problem = self._unreadable(link, message)
        if problem:
            self._invalid(room, f"prefill named pages that can't be read: {problem}", now, Side.PREFILL)
            return
        link.unread += 1
        self._effects.append(SubmitChunk(chunk_of(link, message)))

    def _unreadable(self, link: RoomLink, message: msg.Readable) -> str | None:
        room, layout, most = link.room, link.peer.layout, self.settings.max_indices
        assert room.offer is not None, "a bound room has an offer"
        assert layout is not None, "a session has a layout"
        if link.done or link.dummy:
            return "it had nothing more to send"
        if link.unread >= most:
            return f"{link.unread} chunks wait to be read, TransferConfig.max_indices allows no more"
        rows = np.array([] if message.aux_index is None else [message.aux_index], np.uint64)
        if rows.size and room.offer.aux_index is None:
            return "an auxiliary row, which the room did not offer"
        try:
            named = {"kv": message.kv.array(), "aux": rows}
            named |= {pool: items.array() for pool, (_, items) in message.states.items()}
        except MessageError as error:
            return str(error)
        for pool, (start, _) in message.states.items():
            offered = room.offer.states.get(pool)
            if offered is None or start + named[pool].size > offered.size:
                count = 0 if offered is None else offered.size
                return (
                    f"items {start} to {start + named[pool].size} of state {pool!r}, of which the room offered {count}"
                )
        if message.start + named["kv"].size > most:
            return f"pages {message.start} to {message.start + named['kv'].size}, TransferConfig.max_indices is {most}"
        return next(filter(None, (self._out_of_bounds(layout, *each) for each in named.items())), None)

    def chunk_landed(self, chunk: TransferKVChunk, result: ChunkResult, now: float) -> list[Effect]:
        """Pull: every byte of the chunk is here, and prefill's pages are read no more."""
        room, link = chunk.room, chunk.link
        chunk.settled = True
        seconds = max(0.0, result.stopped - result.started)
        room.note(
            (now, LANDED, chunk.number, link.peer.name, result.nbytes, result.started, result.stopped, result.latency_source)
        )  # fmt: skip
        link.unread -= 1
        link.clock.add(result.started, result.stopped)
        if link.peer.phase is PeerPhase.READY:
            self._sign_of_life(link.peer, now)
        self._push(
            link.peer,
            msg.Pulled(
                room.number, link.life, chunk.number, result.nbytes, seconds, link.clock.seconds, result.latency_source
            ),
        )
        self._one_quiescent(link, now)
        return self._settle(now)

    def _on_done(self, peer: Peer, message: msg.Done, now: float) -> None:
        link = self._link(peer, message.life)
        if link is None:
            return
        room = link.room
        if not room.ended and (not link.source_life or link.done):
            self.counters["unexpected_messages"] += 1
            return
        link.exposed = False
        link.proof = "prefill said done"
        room.note((now, DONE, peer.name, message.nbytes, message.chunks, message.wire_seconds))
        if room.ended:
            self._let_go(link)
            self._settle_room(room, now)
            return
        if link.unread:
            text = f"prefill says that all has been read, but {link.unread} chunks have not"
            self._fail(
                room, FailureCode.INTEGRITY, text, Side.PREFILL, now=now, stage=FailureStage.INTEGRITY, peer=peer
            )
            return
        link.done = True
        link.owes_quiesced = False  # nothing of the room moves any more, and it was told of each chunk
        if link.dummy:
            return
        assert room.offer is not None, "a bound room has an offer"
        link.digests, link.aux_rows = message.digests, message.aux_rows
        room.nbytes += message.nbytes
        room.chunks = max(room.chunks, message.chunks)
        room.remote_wire_s = max(room.remote_wire_s, message.wire_seconds)
        room.latency_source = message.latency_source
        if message.pages != room.offer.kv.size or message.source_life != link.source_life:
            text = f"prefill says it sent {message.pages} pages in life {message.source_life}, expected {room.offer.kv.size} in {link.source_life}"
            self._fail(
                room, FailureCode.INTEGRITY, text, Side.PREFILL, now=now, stage=FailureStage.INTEGRITY, peer=peer
            )
        elif all(each.done for each in room.sources):
            self._apply(room, Event.ARRIVED, now)

    def _on_failed(self, peer: Peer, message: msg.Failed, now: float) -> None:
        link = self._link(peer, message.life)
        if link is None:
            return
        link.told = True
        if message.quiescent and not self.moves:
            self._note_proof(link, "prefill failed without an outstanding write", now)
        if link.room.ended:
            self._let_go(link)
            self._settle_room(link.room, now)
        else:
            self._fail_with(link.room, message.failure.failure(), now)

    def _on_lease(self, peer: Peer, message: msg.Lease, now: float) -> None:
        for life in message.lives:
            link = peer.rooms.get(life)
            if link is not None and link.room.phase is Phase.MOVING:
                self._set_deadline(link.room, now + self.settings.transferring_timeout_s)

    # -- proofs ----------------------------------------------------------------------------------------------------

    def _reconcile(self, name: str, now: float) -> None:
        """Pages wait for the word of a process that was lost. It may live: greet it, and a new session says it all."""
        links = self._orphans.get(name)
        if links and name not in self.peers:
            lost = links[-1].peer
            self._greet(self._new_greeting(name, lost.endpoint, lost.addr, now), now)

    # -- handshake and time ----------------------------------------------------------------------------------------

    def _on_welcome(self, peer: Peer, packet: msg.Welcome, now: float) -> None:
        if peer.phase is not PeerPhase.GREETING:
            self.counters["duplicate_packets"] += 1
            return
        told = packet.introduction
        try:
            layout = self.rules.read(told.layout, told.fields)
            found = self.rules.differences(layout, self.me.introduction.fields, told.fields)
        except MessageError as error:
            text = f"sent a wrong memory layout: {error}"
            self._drop_peer(peer, FailureCode.INVALID_REQUEST, text, now)
            return
        if packet.version != msg.PROTOCOL_VERSION:
            found.append(Difference("protocol_version", str(msg.PROTOCOL_VERSION), str(packet.version)))
        if found:
            self._refused(peer, refusal(found, self.me.role, self.me.label, told.label), now)
            return
        peer.introduction, peer.layout, peer.label = told, layout, told.label
        # Prefill may write as soon as pages are named. Where the fabric has to be a certain one, they are named once it is known.
        peer.meeting = self.settings.require_transport is not None
        self._effects.append(AddPeer(peer.key, told.descriptor, layout, told.process))
        self._dead.pop(peer.name, None)
        self._timers.cancel(("hello", peer))
        self._peer_ready(peer, now)
        self._say_session_quiesced(peer)
        for number, regret in peer.regrets.items():
            self._push(peer, msg.Announce(number, regret.life, regret.destinations))
            self._push(peer, msg.Abort(number, regret.life, regret.failure))
        peer.regrets.clear()
        self._recheck_waiting(peer, now)

    def _on_refuse(self, peer: Peer, packet: msg.Refuse, now: float) -> None:
        failure = packet.failure.failure()
        if peer.phase is PeerPhase.GREETING or failure.stage is FailureStage.HANDSHAKE:
            self._shut_out(peer, failure, now, by_us=False)
            self._refused(peer, failure, now)
        else:
            super()._on_refuse(peer, packet, now)

    def on_peer_met(self, key: PeerKey, now: float) -> list[Effect]:
        """See ``Machine.on_peer_met``: rooms that waited for this name their pages."""
        peer = self.peers.get(key.name)
        if peer is not None and peer.session == key.generation and peer.meeting:
            peer.meeting = False
            for link in peer.rooms.values():
                room = link.room
                if room.phase is Phase.OFFERED and room.offer is not None:
                    self._expose(link, self._metadata(room, room.offer))
        return super().on_peer_met(key, now)

    def on_peer_refused(self, key: PeerKey, message: str, now: float) -> list[Effect]:
        """See ``Machine.on_peer_refused``."""
        effects = super().on_peer_refused(key, message, now)
        self._dead.pop(key.name, None)  # it lives: the next room asks it at once, and learns the same
        return effects

    def _peer_recovered(self, peer: Peer, now: float) -> None:
        self._recheck_waiting(peer, now)

    def _renews(self, link: RoomLink) -> bool:
        """Rooms that queue; and for sources that have nothing more to send, those that wait for the others."""
        phase = link.room.phase
        return phase is Phase.READY or (phase is Phase.MOVING and (link.done or link.dummy))

    def _room_expired(self, life: int, now: float) -> None:
        room = self.live.get(life)
        if room is None or room.ended:
            return
        settings = self.settings
        text, side = {
            Phase.OPEN: (f"no prefill rank was ready within bootstrap_timeout_s={settings.bootstrap_timeout_s:g}", Side.PREFILL),
            Phase.OFFERED: (f"prefill did not open the room within waiting_timeout_s={settings.waiting_timeout_s:g}", Side.PREFILL),
            Phase.MOVING: (f"prefill neither finished nor renewed its lease within transferring_timeout_s={settings.transferring_timeout_s:g}", Side.PREFILL),
            Phase.VERIFYING: (f"the digests were not computed within transferring_timeout_s={settings.transferring_timeout_s:g}", Side.DECODE),
        }[room.phase]  # fmt: skip
        if room.phase is Phase.OPEN and not room.initialised:
            text, side = (
                f"init() was not called within bootstrap_timeout_s={settings.bootstrap_timeout_s:g}",
                Side.DECODE,
            )
        heard = [
            f"{p} last heard {now - p.liveness.last_life:.1f} s ago"
            for p in (link.peer for link in room.links.values())
        ]
        details = "; ".join(
            [f"{now - room.opened_at:.1f} s after opening", *heard, *([room.last_error] if room.last_error else [])]
        )
        self._fail(room, FailureCode.TIMEOUT, f"{text} ({details})", side, now=now, retryable=True)

    def snapshot(self) -> dict[str, Any]:
        """See ``Machine.snapshot``; adds the prefill instances that are being spoken to."""
        return super().snapshot() | {
            "nodes": len(self.nodes), "leases": sum(room.phase is Phase.READY for room in self.live.values()),
        }  # fmt: skip

    def _pages(self, room: Room) -> int:
        return 0 if room.offer is None else int(room.offer.kv.size)
