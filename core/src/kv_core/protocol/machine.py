"""What both sides' machines share: sessions with peers, packets, probes, deadlines, and how a room ends.

A machine is a plain object without clock, lock or thread. Every public method takes the time, changes the state and
returns the effects that the runtime shall perform; the caller holds one lock around each call and none while it
performs them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import FailureCode, FailureStage, Liveness, Role, Side
from kv_core.contract.failures import Failure
from kv_core.contract.moments import FAILED, OPENED, PHASE, RELEASED
from kv_core.contract.records import PeerEvent, RoomEventKind
from kv_core.contract.traceparent import clean_traceparent
from kv_core.contract.transport import PeerKey
from kv_core.protocol import messages as msg
from kv_core.protocol.effects import Disconnect, Effect, RemovePeer, SendPacket, TellPeer, TellRoom
from kv_core.protocol.handshake import LayoutRules
from kv_core.protocol.history import FlightRecord, History
from kv_core.protocol.identity import Identity
from kv_core.protocol.lifecycle import DECODE, PREFILL, STAGE, Action, Event, Phase
from kv_core.protocol.link import BURST_BYTES, ReliableLink
from kv_core.protocol.liveness import PeerLiveness
from kv_core.protocol.opening import objection
from kv_core.protocol.peers import Peer, PeerPhase, Unreachable
from kv_core.protocol.rooms import Room, RoomLink
from kv_core.protocol.telling import room_event
from kv_core.protocol.timers import Timers

MAX_LIVES_PER_LEASE = 8_192
ENDPOINT = re.compile(r"tcp://(\[[0-9a-fA-F:.%a-z]+\]|[A-Za-z0-9_.-]+):([1-9][0-9]{0,4})")
"""What a peer may give as its address: we connect to it."""


class Machine:
    """Base of ``PrefillMachine`` and ``DecodeMachine``."""

    def __init__(self, me: Identity, settings: TransferConfig, rules: LayoutRules) -> None:
        self.me = me
        self.settings = settings
        self.rules = rules
        self.table: dict[int, Room] = {}  # by number, until cleared
        self.live: dict[int, Room] = {}  # by life, until ended and safe to release
        self.peers: dict[str, Peer] = {}  # by instance id: the current session with each
        self.counters: Counter[str] = Counter()
        self.flight = FlightRecord()
        self.closed = False
        self._lives = 0
        self._timers: Timers[tuple[str, Any]] = Timers()
        self._effects: list[Effect] = []
        self._dirty: dict[Peer, None] = {}
        self._lifecycle = PREFILL if me.role is Role.PREFILL else DECODE
        self._actions: dict[Action, Callable[[Room, float], None]] = {Action.REPORT: self._report}
        self._on_timer: dict[str, Callable[[Any, float], None]] = {
            "probe": self._probe, "link": self._tick_link, "lease": self._renew_leases, "room": self._room_expired,
            "drain": self._drain_expired,
        }  # fmt: skip
        self._on_message: dict[type, Callable[[Peer, Any, float], None]] = {}

    # -- rooms -----------------------------------------------------------------------------------------------------

    def _open(self, number: object, addr: str, traceparent: str | None, now: float) -> Room:
        self._lives += 1
        size = self.settings.flight_recorder
        room = Room(
            self.me.role, number if isinstance(number, int) else -1, self._lives, addr, now,
            history=History(size) if size else None, traceparent=traceparent,
        )  # fmt: skip
        room.note((now, OPENED))
        problem = objection(number, self.table, self.me.role, self.settings.max_rooms, closed=self.closed)
        if problem is not None:
            self._refuse_room(room, *problem, now)
            return room
        room.listed = True
        self.table[room.number] = room
        self.live[room.life] = room
        self._set_deadline(room, now + self.settings.bootstrap_timeout_s)
        self._tell(room, RoomEventKind.OPENED, now)
        return room

    def _refuse_room(self, room: Room, code: FailureCode, message: str, now: float) -> None:
        """End a room that never came into the table."""
        room.failure = Failure(
            FailureStage.BOOTSTRAP, code, message, Side.of(self.me.role), code is FailureCode.OVERLOADED, self.me.label
        )
        room.phase = Phase.FAILED
        room.release_safe = True
        self._note_failure(room, room.failure, now)
        self._tell(room, RoomEventKind.CONCLUDED, now)
        self.flight.released(room)
        room.publish_end()

    def abort(self, room: Room, reason: str, now: float) -> list[Effect]:
        """Fail a room on the engine's behalf."""
        text = reason or f"the {self.me.role.value} engine aborted the room"
        self._fail(room, FailureCode.ABORTED_LOCAL, text, Side.of(self.me.role), now=now)
        return self._settle(now)

    def invalid(self, room: Room, message: str, now: float) -> list[Effect]:
        """Fail a room because the engine's call can't be carried out."""
        self._invalid(room, message, now)
        return self._settle(now)

    def _invalid(self, room: Room, message: str, now: float, side: Side | None = None) -> None:
        self._fail(room, FailureCode.INVALID_REQUEST, message, side or Side.of(self.me.role), now=now)

    def clear(self, room: Room, now: float) -> list[Effect]:
        """Drop a room from the table, aborting it if it is live."""
        if not room.ended:
            self._fail(
                room,
                FailureCode.ABORTED_LOCAL,
                "the room was cleared while it was live",
                Side.of(self.me.role),
                now=now,
            )
        room.cleared = True
        if self.table.get(room.number) is room:
            del self.table[room.number]
        return self._settle(now)

    def _apply(self, room: Room, event: Event, now: float) -> bool:
        entry = self._lifecycle.get((room.phase, event))
        if entry is None:
            self.counters[f"ignored_{event.name.lower()}"] += 1
            return False
        phase, actions = entry
        room.enter(phase)
        if phase is not Phase.FAILED:
            room.note((now, PHASE, phase.word))
        for action in actions:
            self._actions[action](room, now)
        if room.ended:
            self._settle_room(room, now)
        return True

    def _fail(
        self, room: Room, code: FailureCode, message: str, side: Side, *, now: float, stage: FailureStage | None = None,
        retryable: bool = False, peer: Peer | None = None,
    ) -> None:  # fmt: skip
        stage = stage or STAGE.get(room.phase, FailureStage.DRAIN)
        failure = Failure(stage, code, message, side, retryable, self.me.label, str(peer) if peer else "")
        self._fail_with(room, failure, now)

    def _fail_with(self, room: Room, failure: Failure, now: float) -> None:
        if room.ended:
            self.counters["late_failures"] += 1
            return
        room.failure = failure.with_origin(self.me.label)
        self._note_failure(room, failure, now)
        self._apply(room, Event.FAILED, now)

    @staticmethod
    def _note_failure(room: Room, failure: Failure, now: float) -> None:
        room.note((now, FAILED, failure.stage.value, failure.code.value, failure.side.value, failure.message))

    def _report(self, room: Room, now: float) -> None:
        self._timers.cancel(("room", room.life))
        room.ended_at = now
        if room.phase is Phase.SUCCESS:
            room.metric = self._metric(room, now)
        self._tell(room, RoomEventKind.CONCLUDED, now)

    def _metric(self, room: Room, now: float) -> Any:
        raise NotImplementedError

    def _settle_room(self, room: Room, now: float) -> None:
        """After an end, or after a write became quiescent: may the pages go?"""
        if not room.release_safe and not room.busy:
            room.release_safe = True
            self._timers.cancel(("drain", room.life))
            self.live.pop(room.life, None)
            room.note((now, RELEASED))
            self._tell(room, RoomEventKind.RELEASED, now)
            self.flight.released(room)
        elif room.busy and self._timers.get(("drain", room.life)) is None:
            self._timers.set(("drain", room.life), now + self.settings.draining_timeout_s)
        room.publish_end()

    def _drain_expired(self, life: int, _now: float) -> None:
        # Time proves nothing about writes: the pages stay where they are, and ``snapshot`` names what is missing.
        if life in self.live:
            self.counters["drain_timeouts"] += 1

    def _set_deadline(self, room: Room, when: float) -> None:
        self._timers.set(("room", room.life), when)

    def _room_expired(self, life: int, now: float) -> None:
        raise NotImplementedError

    # -- packets ---------------------------------------------------------------------------------------------------

    def on_packet(self, packet: msg.Packet, now: float) -> list[Effect]:
        """A packet came in. Packets of nobody we know, or of an old session, change nothing and are counted."""
        self._take(packet, now)
        return self._settle(now)

    def _take(self, packet: msg.Packet, now: float) -> None:
        if isinstance(packet, msg.Hello):
            self._on_hello(packet, now)
            return
        if packet.receiver != self.me.instance_id:
            self._answer_stranger(packet)
            return
        if isinstance(packet, msg.Reset):
            self._on_reset(packet, now)
            return
        peer = self.peers.get(packet.sender)
        if peer is None or peer.session != packet.session:
            self._answer_stranger(packet)
            return
        if isinstance(packet, msg.Welcome):
            self._on_welcome(peer, packet, now)
        elif isinstance(packet, msg.Refuse):
            self._on_refuse(peer, packet, now)
        elif isinstance(packet, msg.Bye):
            self._on_bye(peer, packet, now)
        elif peer.phase is PeerPhase.READY:
            self._on_session_packet(peer, packet, now)
        else:
            self._on_premature(peer, now)

    def _on_premature(self, peer: Peer, now: float) -> None:
        """For the peer the session stands; here its Welcome has not come."""

    def _on_session_packet(self, peer: Peer, packet: msg.Ping | msg.Pong | msg.Data, now: float) -> None:
        if isinstance(packet, msg.Pong):
            # A process whose transfer thread stands still serves no room, however alive its control thread is.
            peer.stalled = packet.stalled_s > self.settings.probe_interval_s * self.settings.dead_after
        if not peer.stalled:
            self._sign_of_life(peer, now)
        peer.link.on_ack(packet.ack, now)
        self._dirty[peer] = None
        if isinstance(packet, msg.Pong) and peer.unreachable is not None and packet.number >= peer.unreachable.ping:
            why = f"can't be reached by the transport: {peer.unreachable.message}"
            self._end_session(peer, FailureCode.TRANSPORT_ERROR, why, now)
        elif isinstance(packet, msg.Ping):
            self._send(
                peer, msg.Pong(**self._header(peer), number=packet.number, ack=peer.link.ack, stalled_s=self.stalled_s)
            )
        elif isinstance(packet, msg.Data):
            for message in peer.link.on_data(packet.seq, packet.messages, now):
                handler = self._on_message.get(type(message))
                if handler is None:
                    self.counters["unexpected_messages"] += 1
                elif peer.phase is PeerPhase.READY:
                    handler(peer, message, now)

    stalled_s = 0.0
    """How long this process's own transfer thread has stood still; set by the runtime."""

    def _answer_stranger(self, packet: msg.Packet) -> None:
        self.counters["stale_packets"] += 1
        if isinstance(packet, msg.Ping) and ENDPOINT.fullmatch(packet.endpoint):
            self._reset(packet, packet.endpoint)

    def _reset(self, packet: msg.Packet, endpoint: str) -> None:
        """Answer a packet of a session that is not, or not any more."""
        reset = msg.Reset(
            sender=self.me.instance_id, receiver=packet.sender, session=packet.session, about=packet.receiver,
            quiescent=self._is_quiet(packet.sender, packet.session),
        )  # fmt: skip
        self._effects.append(SendPacket(endpoint, reset))

    def _is_quiet(self, name: str, session: int) -> bool:
        """Whether nothing that this side moved in this session with a peer, which has ended here, can go on."""
        raise NotImplementedError

    def _on_reset(self, packet: msg.Reset, now: float) -> None:
        peer = self.peers.get(packet.about)
        if peer is None or peer.session != packet.session:
            self.counters["stale_packets"] += 1
        elif packet.sender == packet.about:
            self._session_ended(peer, now)
        else:
            peer.replaced = True
            self._drop_peer(
                peer, FailureCode.PEER_REPLACED, f"was replaced by another process ({packet.sender[:8]})", now
            )

    def _session_ended(self, peer: Peer, now: float) -> None:
        """The peer lives, but has ended the session."""
        self._drop_peer(peer, FailureCode.PEER_LOST, "ended the session (it had declared this side dead)", now)

    def _on_hello(self, packet: msg.Hello, now: float) -> None:
        self.counters["unexpected_packets"] += 1

    def _on_welcome(self, peer: Peer, packet: msg.Welcome, now: float) -> None:
        self.counters["unexpected_packets"] += 1

    def _on_refuse(self, peer: Peer, packet: msg.Refuse, now: float) -> None:
        failure = packet.failure.failure()
        if failure.stage is FailureStage.HANDSHAKE:
            self._shut_out(peer, failure, now, by_us=False)
        self._drop_peer(peer, failure.code, f"ended the session: {failure.message}", now, failure=failure)

    def _on_bye(self, peer: Peer, packet: msg.Bye, now: float) -> None:
        self._drop_peer(peer, FailureCode.CLOSED, "closed its manager", now)

    def _header(self, peer: Peer) -> dict[str, Any]:
        return {"sender": self.me.instance_id, "receiver": peer.name, "session": peer.session}

    def _read_traceparent(self, told: str | None) -> str | None:
        """What a peer named as the room's trace; a wrong one is none, and counted."""
        cleaned = clean_traceparent(told)
        if told is not None and cleaned is None:
            self.count_bad_traceparent()
        return cleaned

    def count_bad_traceparent(self) -> int:
        """Count one; how many there have been."""
        self.counters["bad_traceparents"] += 1
        return self.counters["bad_traceparents"]

    def _send(self, peer: Peer, packet: msg.Packet) -> None:
        self._effects.append(SendPacket(peer.endpoint, packet))

    def _too_long(self, message: msg.Message) -> str | None:
        """Why a message does not fit a packet: it could never be sent, and would hold up all that follow it."""
        size, limit = msg.weight(message), self.settings.max_message_bytes - msg.MAX_HEADER
        if size <= limit:
            return None
        kind = type(message).__name__
        return f"a {kind} message of {size} bytes is needed, TransferConfig.max_message_bytes allows {limit}"

    def _push(self, peer: Peer, message: msg.Message) -> None:
        if peer.phase is PeerPhase.READY:
            peer.link.push(message)
            self._dirty[peer] = None

    # -- peers -----------------------------------------------------------------------------------------------------

    def _new_peer(self, name: str, session: int, endpoint: str, now: float) -> Peer:
        settings = self.settings
        liveness = PeerLiveness(settings.probe_interval_s, settings.suspect_after, settings.dead_after, now)
        peer = Peer(name, session, endpoint, liveness)
        peer.link = ReliableLink(min(BURST_BYTES, (settings.max_message_bytes - msg.MAX_HEADER) // 2))
        self.peers[name] = peer
        return peer

    def _peer_ready(self, peer: Peer, now: float) -> None:
        peer.phase = PeerPhase.READY
        peer.liveness.life(now)
        self._timers.set(("probe", peer), now + self.settings.probe_interval_s)
        self._timers.set(("lease", peer), now + self.settings.lease_s / 3)
        self._tell_peer(peer, Liveness.OK, "the handshake passed", now)

    def _sign_of_life(self, peer: Peer, now: float) -> None:
        before = peer.liveness.state
        if peer.liveness.life(now) is not before:
            self._tell_peer(peer, Liveness.OK, "answers again", now, before=before)
            self._peer_recovered(peer, now)

    def _peer_recovered(self, peer: Peer, now: float) -> None:
        """A suspect peer answers again."""

    def on_connection_lost(self, endpoint: str, now: float) -> list[Effect]:
        """The connection to this endpoint broke: who lives there is suspect and is probed at once."""
        for peer in self._at(endpoint):
            if peer.phase is PeerPhase.READY:
                if peer.liveness.state is Liveness.OK:
                    self._tell_peer(peer, Liveness.SUSPECT, "the connection broke", now, before=Liveness.OK)
                peer.liveness.doubt(now)
                self._timers.set(("probe", peer), peer.liveness.next_probe)
        return self._settle(now)

    def on_connection_refused(self, endpoint: str, now: float) -> list[Effect]:
        """Nobody listens at this endpoint: who lived there is dead."""
        for peer in self._at(endpoint):
            self._drop_peer(peer, FailureCode.PEER_LOST, "is gone: nobody listens at its address", now)
        return self._settle(now)

    def _at(self, endpoint: str) -> list[Peer]:
        return [peer for peer in self.peers.values() if peer.endpoint == endpoint]

    def _probe(self, peer: Peer, now: float) -> None:
        before = peer.liveness.state
        state = peer.liveness.probe(now)
        if state is Liveness.DEAD:
            settings = self.settings
            seen = now - peer.liveness.last_life
            what = "moves no bytes: its transfer thread stands still" if peer.stalled else "answers no probes"
            self._drop_peer(
                peer, FailureCode.PEER_LOST,
                f"{what} ({peer.liveness.misses} probes in vain, last sign of life {seen:.1f} s ago; "
                f"probe_interval_s={settings.probe_interval_s:g}, dead_after={settings.dead_after})", now,
            )  # fmt: skip
            return
        if state is not before:
            self._tell_peer(peer, state, f"{peer.liveness.misses} probes unanswered", now, before=before)
        self._ping(peer)
        self._timers.set(("probe", peer), peer.liveness.next_probe)

    def _ping(self, peer: Peer) -> None:
        peer.pings += 1
        ping = msg.Ping(**self._header(peer), number=peer.pings, ack=peer.link.ack, endpoint=self.me.endpoint)
        self._send(peer, ping)

    def on_peer_failed(self, key: PeerKey, message: str, now: float) -> list[Effect]:
        """The transport could not add or prepare this peer.

        A transport may be the first to notice that a peer has died. So it is the transport's failure only if the peer
        answers a ping that was sent after it; one that does not is lost, and is found to be, as any other.
        """
        peer = self.peers.get(key.name)
        if peer is not None and peer.session == key.generation and peer.unreachable is None:
            self._ping(peer)
            peer.unreachable = Unreachable(message, peer.pings)
        return self._settle(now)

    def on_peer_met(self, key: PeerKey, now: float) -> list[Effect]:
        """The transport has met this peer, over a fabric that this side allows."""
        return self._settle(now)

    def on_peer_refused(self, key: PeerKey, message: str, now: float) -> list[Effect]:
        """The transport reaches this peer over a fabric that this side does not allow: nothing may move between the two."""
        peer = self.peers.get(key.name)
        if peer is not None and peer.session == key.generation:
            failure = Failure(
                FailureStage.HANDSHAKE, FailureCode.INCOMPATIBLE, message, Side.UNKNOWN, False, self.me.label, str(peer)
            )
            self._shut_out(peer, failure, now, by_us=True)
            self._end_session(peer, failure.code, f"is refused: {message}", now, failure=failure)
        return self._settle(now)

    def _shut_out(self, peer: Peer, failure: Failure, now: float, *, by_us: bool) -> None:
        """A session that had begun ends as a handshake that was refused does."""

    def _end_session(
        self, peer: Peer, code: FailureCode, why: str, now: float, *, failure: Failure | None = None
    ) -> None:
        """End a session with a peer that lives, and tell it why: its rooms shall fail for the same reason."""
        failure = failure or Failure(
            FailureStage.TRANSFER, code, f"{peer} {why}", Side.of(self.me.role.peer), True, self.me.label, str(peer)
        )
        if peer.phase is PeerPhase.READY:
            self._send(peer, msg.Refuse(**self._header(peer), failure=msg.WireFailure.of(failure)))
        self._drop_peer(peer, code, why, now, failure=failure)

    def _drop_peer(
        self, peer: Peer, code: FailureCode, why: str, now: float, *, failure: Failure | None = None
    ) -> None:
        """End a session: its rooms fail, the transport forgets it, and who still may write is not forgotten."""
        if peer.phase is PeerPhase.GONE:
            return
        greeting = peer.phase is PeerPhase.GREETING
        peer.phase = PeerPhase.GONE
        before = None if greeting else peer.liveness.before_death
        peer.liveness.die()
        del self.peers[peer.name]
        self._dirty.pop(peer, None)
        for kind in ("probe", "lease", "link", "hello"):
            self._timers.cancel((kind, peer))
        cause = failure or Failure(
            FailureStage.HANDSHAKE if greeting else FailureStage.TRANSFER, code, f"{peer} {why}",
            Side.of(self.me.role.peer), True, self.me.label, str(peer),
        )  # fmt: skip
        links = list(peer.rooms.values())
        waiting = list(peer.awaiting.values())
        peer.awaiting.clear()
        self._peer_gone(peer, links, now)
        for room in [link.room for link in links] + waiting:
            if not room.ended:
                stage = cause.stage if greeting or cause.stage is FailureStage.HANDSHAKE else STAGE[room.phase]
                self._fail_with(room, replace(cause, stage=stage), now)
        for link in links:
            self._settle_room(link.room, now)
        if not self._at(peer.endpoint):
            self._effects.append(Disconnect(peer.endpoint))
        if not greeting:
            self._effects.append(RemovePeer(peer.key))
        if not greeting or links or waiting:  # a greeting that no room waited for is no news
            self._tell_peer(peer, Liveness.DEAD, why, now, before=before, code=cause.code)

    def _peer_gone(self, peer: Peer, links: list[RoomLink], now: float) -> None:
        raise NotImplementedError

    @property
    def _patience_s(self) -> float:
        """How long silence means death."""
        return self.settings.probe_interval_s * self.settings.dead_after

    # -- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Do what has come due."""
        for kind, key in self._timers.due(now):
            if isinstance(key, Peer) and key.phase is PeerPhase.GONE:
                continue  # dropped by what came due just before: it must not set its timers anew
            self._on_timer[kind](key, now)
        return self._settle(now)

    def next_deadline(self) -> float | None:
        """When ``tick`` should be called next."""
        return self._timers.next()

    def _tick_link(self, peer: Peer, now: float) -> None:
        bare_ack, again = peer.link.tick(now)
        for seq, batch in again:
            self.counters["retransmissions"] += 1
            self._send(peer, msg.Data(**self._header(peer), seq=seq, ack=peer.link.ack, messages=batch))
        if bare_ack and not again:
            self._send(peer, msg.Data(**self._header(peer), seq=0, ack=peer.link.ack, messages=[]))
        self._dirty[peer] = None

    def _renew_leases(self, peer: Peer, now: float) -> None:
        lives = [life for life, link in peer.rooms.items() if self._renews(link)]
        for i in range(0, len(lives), MAX_LIVES_PER_LEASE):
            self._push(peer, msg.Lease(lives[i : i + MAX_LIVES_PER_LEASE]))
        self._timers.set(("lease", peer), now + self.settings.lease_s / 3)

    def _renews(self, link: RoomLink) -> bool:
        raise NotImplementedError

    def _settle(self, now: float) -> list[Effect]:
        """End of every public call: what was pushed becomes packets; hand out the effects."""
        while self._dirty:
            peer, _ = self._dirty.popitem()
            if peer.link.overflowed:
                self._end_session(
                    peer, FailureCode.OVERLOADED, "acknowledges nothing: too many messages wait for it", now
                )
                continue
            for seq, batch in peer.link.flush(now):
                self._send(peer, msg.Data(**self._header(peer), seq=seq, ack=peer.link.ack, messages=batch))
            deadline = peer.link.next_deadline()
            if deadline is not None:
                self._timers.set(("link", peer), deadline)
        effects, self._effects = self._effects, []
        return effects

    def close(self, now: float) -> list[Effect]:
        """Fail every live room (code closed). Sessions go on until ``farewell``, so that the peers are told."""
        self.closed = True
        for room in list(self.live.values()):
            if not room.ended:
                self._fail(
                    room, FailureCode.CLOSED, f"the {self.me.role.value} manager was closed",
                    Side.of(self.me.role), now=now, retryable=True,
                )  # fmt: skip
        return self._settle(now)

    def farewell(self, quiescent: bool) -> list[Effect]:
        """The last packets: tell every peer that this process leaves, and whether its writes have all ended."""
        for peer in self.peers.values():
            if peer.phase is PeerPhase.READY:
                self._send(peer, msg.Bye(**self._header(peer), quiescent=quiescent))
        effects, self._effects = self._effects, []
        return effects

    # -- telling ---------------------------------------------------------------------------------------------------

    def _tell(self, room: Room, kind: RoomEventKind, now: float) -> None:
        self._effects.append(TellRoom(room_event(self.me, room, kind, now)))

    def _tell_peer(
        self, peer: Peer, state: Liveness, reason: str, now: float, *, before: Liveness | None = None,
        code: FailureCode | None = None,
    ) -> None:  # fmt: skip
        me = self.me
        self._effects.append(TellPeer(PeerEvent(me.backend, me.role, str(peer), state, reason, now, before, code)))

    def snapshot(self) -> dict[str, Any]:
        """Counts of what is alive; all 0 at rest. ``quarantined`` names the pages that wait for a proof."""
        rooms = Counter(room.phase.value for room in self.table.values())
        draining = [room for room in self.live.values() if room.ended]
        return {
            "rooms": len(self.table),
            "rooms_by_phase": {phase.value: rooms.get(phase.value, 0) for phase in Phase},
            "live_rooms": sum(not room.ended for room in self.live.values()),
            "draining_rooms": len(draining),
            "peers": len(self.peers),
            "room_links": sum(len(peer.rooms) for peer in self.peers.values()),
            "unacknowledged_messages": sum(peer.link.unacknowledged for peer in self.peers.values()),
            "quarantined": [self._quarantine(room) for room in draining],
            "dropped": dict(self.counters),
        }

    def _quarantine(self, room: Room) -> dict[str, Any]:
        missing = [self._missing_proof(link) for link in room.links.values() if link.busy]
        return {"room": room.number, "life": room.life, "pages": self._pages(room), "missing": missing}

    def _missing_proof(self, link: RoomLink) -> str:
        raise NotImplementedError

    def _pages(self, room: Room) -> int:
        raise NotImplementedError
