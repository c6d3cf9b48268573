"""Machines that are broken on purpose, each in one way. A simulator that does not catch them proves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from msgspec import structs

from kv_core.contract.enums import FailureCode, Role, Side
from kv_core.contract.failures import Failure
from kv_core.contract.records import RoomEventKind
from kv_core.protocol import messages as msg
from kv_core.protocol.chunks import ChunkResult, TransferKVChunk
from kv_core.protocol.decode import DecodeMachine
from kv_core.protocol.effects import Effect, FencePeer
from kv_core.protocol.lifecycle import Event, Phase
from kv_core.protocol.link import ReliableLink
from kv_core.protocol.machine import Machine
from kv_core.protocol.peers import Peer, PeerPhase
from kv_core.protocol.prefill import PrefillMachine
from kv_core.protocol.rooms import Room, RoomLink


class Mutant(NamedTuple):
    """A broken machine. ``invariant``: what it is made to break first (it may be caught by another)."""

    name: str
    invariant: str
    what: str
    machines: dict[Role, type[Machine]]
    pull: bool = False  # hunted in schedules that pull


MUTANTS: list[Mutant] = []


def _mutant(invariant: str, what: str, *, pull: bool = False) -> Any:
    def register(kind: type[Machine]) -> type[Machine]:
        machines: dict[Role, type[Machine]] = {Role.PREFILL: PrefillMachine, Role.DECODE: DecodeMachine}
        machines[Role.PREFILL if issubclass(kind, PrefillMachine) else Role.DECODE] = kind
        MUTANTS.append(Mutant(kind.__name__, invariant, what, machines, pull))
        return kind

    return register


# -- I1: terminal states -----------------------------------------------------------------------------------------------


@_mutant("I1 terminal", "a failure overwrites Success")
class FlapsFromSuccess(DecodeMachine):
    def _fail_with(self, room: Room, failure: Failure, now: float) -> None:
        if room.phase is Phase.SUCCESS:
            room.phase = Phase.VERIFYING
        super()._fail_with(room, failure, now)


@_mutant("I1 terminal", "the end is told once more when the pages are released")
class TellsTwice(PrefillMachine):
    def _settle_room(self, room: Room, now: float) -> None:
        before = room.release_safe
        super()._settle_room(room, now)
        if room.release_safe and not before and room.moved:
            self._tell(room, RoomEventKind.CONCLUDED, now)


# -- I2: Success means that every byte is there ------------------------------------------------------------------------


@_mutant("I2 success", "Done is said when the last chunk is posted, not when it has landed")
class DoneWhenPosted(PrefillMachine):
    def claim_chunk(self, chunk: TransferKVChunk, now: float) -> tuple[bool, list[Effect]]:
        yes, effects = super().claim_chunk(chunk, now)
        room = chunk.room
        if yes:
            room.unfinished -= 1
            if room.complete and not room.unfinished and not room.waiting:
                self._apply(room, Event.LANDED, now)
        return yes, effects + self._settle(now)

    def chunk_landed(self, chunk: TransferKVChunk, result: ChunkResult, now: float) -> list[Effect]:
        chunk.room.unfinished += 1
        return super().chunk_landed(chunk, result, now)


@_mutant("I2 success", "a digest that differs is taken for one that agrees")
class IgnoresDigests(DecodeMachine):
    def on_verified(self, room: Room, link: RoomLink, problem: str | None, now: float) -> list[Effect]:
        return super().on_verified(room, link, None, now)


@_mutant("I2 success", "prefill succeeds without decode's verdict")
class SucceedsAlone(PrefillMachine):
    def _say_done(self, room: Room, now: float) -> None:
        super()._say_done(room, now)
        self._apply(room, Event.AGREED, now)


@_mutant("I2 success", "of several sources, the first Done is enough")
class FirstSourceIsEnough(DecodeMachine):
    def _on_done(self, peer: Peer, message: msg.Done, now: float) -> None:
        super()._on_done(peer, message, now)
        link = peer.rooms.get(message.life)
        if link is not None and link.done:
            self._apply(link.room, Event.ARRIVED, now)


# -- I3: nothing lands after release_safe ------------------------------------------------------------------------------


@_mutant("I3 release", "decode's pages are released on abort, without Quiesced")
class ReleasesOnAbort(DecodeMachine):
    def _drain(self, room: Room, now: float) -> None:
        super()._drain(room, now)
        for link in room.links.values():
            link.exposed = False


@_mutant("I3 release", "prefill acknowledges an abort while its writes are under way")
class QuiescesTooSoon(PrefillMachine):
    def _on_abort(self, peer: Peer, message: msg.Abort, now: float) -> None:
        super()._on_abort(peer, message, now)
        self._push(peer, msg.Quiesced(message.room, message.life))


@_mutant("I3 release", "the pages are released when the draining timeout is over")
class TimeIsProof(DecodeMachine):
    def _drain_expired(self, life: int, now: float) -> None:
        room = self.live.get(life)
        if room is not None:
            for link in room.links.values():
                link.exposed = False
            self._settle_room(room, now)


@_mutant("I3 release", "a peer that is declared dead is taken for one that is")
class VerdictIsProof(DecodeMachine):
    def _peer_gone(self, peer: Peer, links: list[RoomLink], now: float) -> None:
        super()._peer_gone(peer, links, now)
        for link in self._orphans.pop(peer.name, []):
            link.exposed = False


@_mutant("I3 release", "pages named in a life that has ended are taken up by the next room of the number")
class TakesStaleMetadata(PrefillMachine):
    def _on_metadata(self, peer: Peer, message: msg.Metadata, now: float) -> None:
        if message.life not in peer.rooms and self._inbox.get(peer, message.life) is None:
            self._on_announce(peer, msg.Announce(message.room, message.life), now)
        super()._on_metadata(peer, message, now)


@_mutant("I3 release", "a chunk is posted although its room has ended")
class PostsAfterTheEnd(PrefillMachine):
    def claim_chunk(self, chunk: TransferKVChunk, now: float) -> tuple[bool, list[Effect]]:
        if chunk.room.ended:
            chunk.claimed = True
            chunk.link.outstanding += 1
            return True, self._settle(now)
        return super().claim_chunk(chunk, now)


@_mutant("I3 release", "the fence is skipped: its pages are released when it is asked for")
class SkipsTheFence(DecodeMachine):
    def _settle(self, now: float) -> list[Effect]:
        effects = super()._settle(now)
        for effect in effects:
            if isinstance(effect, FencePeer):
                self._unexpose_orphans(effect.peer.name, effect.peer.generation, "skipped", now)
        return effects + super()._settle(now)


@_mutant("I3 release", "a new session says that the old ones are quiescent, though they are not")
class ForgetsOldSessions(PrefillMachine):
    def _peer_gone(self, peer: Peer, links: list[RoomLink], now: float) -> None:
        super()._peer_gone(peer, links, now)
        self._old.clear()


@_mutant("I3 release", "pages are released while their auxiliary row is still being written")
class ForgetsVerification(DecodeMachine):
    def _settle_room(self, room: Room, now: float) -> None:
        if room.ended:
            for link in room.links.values():
                link.verifying = False
        super()._settle_room(room, now)


@_mutant("I3 release", "prefill's pages are released when the room fails, though they are still being read")
class ReleasesSources(PrefillMachine):
    def _settle_room(self, room: Room, now: float) -> None:
        outstanding = {link: link.outstanding for link in room.links.values()}
        for link in outstanding:
            link.outstanding = 0
        super()._settle_room(room, now)
        for link, count in outstanding.items():
            link.outstanding = count


@_mutant("I3 release", "a second decode rank that names the number joins a room that is bound")
class TakesUpEverybody(PrefillMachine):
    def _take_up(self, room: Room, early: Any, now: float) -> None:
        self._adopt(room, early, now)


# -- the same, where decode reads ----------------------------------------------------------------------------------------


@_mutant(
    "I3 release",
    "pull: prefill's pages are released when the room fails, before decode has said that it reads no more",
    pull=True,
)
class ReleasesWhatIsRead(PrefillMachine):
    def _drain(self, room: Room, now: float) -> None:
        super()._drain(room, now)
        for link in room.links.values():
            link.exposed = False


@_mutant("I3 release", "pull: decode says that it reads no more while its reads are under way", pull=True)
class SaysQuiescedTooSoon(DecodeMachine):
    def _say_quiesced(self, link: RoomLink) -> None:
        if link.owes_quiesced:
            link.owes_quiesced = False
            self._push(link.peer, msg.Quiesced(link.room.number, link.life))


@_mutant("I2 success", "pull: a chunk is told as read when its reading begins", pull=True)
class PulledWhenPosted(DecodeMachine):
    def claim_chunk(self, chunk: TransferKVChunk, now: float) -> tuple[bool, list[Effect]]:
        yes, effects = super().claim_chunk(chunk, now)
        if yes:
            chunk.link.unread -= 1
            self._push(
                chunk.link.peer, msg.Pulled(chunk.room.number, chunk.link.life, chunk.number, 0, 0.0, 0.0, "core")
            )
        return yes, effects + self._settle(now)

    def chunk_landed(self, chunk: TransferKVChunk, result: ChunkResult, now: float) -> list[Effect]:
        chunk.link.unread += 1
        return super().chunk_landed(chunk, result, now)


@_mutant("I7 isolation", "pull: prefill says Done when all chunks may be read, not when they have been", pull=True)
class DoneWhenReadable(PrefillMachine):
    def chunk_readable(self, chunk: TransferKVChunk, digest: Any, aux_rows: Any, now: float) -> list[Effect]:
        effects = super().chunk_readable(chunk, digest, aux_rows, now)
        chunk.room.unfinished -= 1
        self._check_landed(chunk.room, now)
        return effects + self._settle(now)

    def _on_pulled(self, peer: Peer, message: msg.Pulled, now: float) -> None:
        link = peer.rooms.get(message.life)
        if link is not None:
            link.room.unfinished += 1
        super()._on_pulled(peer, message, now)


@_mutant(
    "I3 release", "pull: a chunk of a life that has ended is read into the room that has the number now", pull=True
)
class TakesStaleChunks(DecodeMachine):
    def _on_readable(self, peer: Peer, message: msg.Readable, now: float) -> None:
        for link in peer.rooms.values():
            if link.room.number == message.room and link.room.offer is not None and not link.room.ended:
                kept, link.source_life = link.source_life, message.source_life
                super()._on_readable(peer, structs.replace(message, life=link.life), now)
                link.source_life = kept or message.source_life
                return
        super()._on_readable(peer, message, now)


@_mutant("I3 release", "pull: a room that has ended goes on reading what it is told of", pull=True)
class ReadsAfterTheEnd(DecodeMachine):
    def claim_chunk(self, chunk: TransferKVChunk, now: float) -> tuple[bool, list[Effect]]:
        if chunk.room.ended:
            chunk.claimed = True
            chunk.link.outstanding += 1
            return True, self._settle(now)
        return super().claim_chunk(chunk, now)


@_mutant(
    "I3 release",
    "pull: asked about a lost session, decode says that its reads have ended, though they have not",
    pull=True,
)
class AnswersTooSoon(DecodeMachine):
    def _is_quiet(self, name: str, session: int) -> bool:
        return True


@_mutant(
    "I3 release", "pull: in a new session decode says that the old ones are quiescent, though they are not", pull=True
)
class ForgetsOldReads(DecodeMachine):
    def _peer_gone(self, peer: Peer, links: list[RoomLink], now: float) -> None:
        super()._peer_gone(peer, links, now)
        self._old.clear()


@_mutant("I4 leak", "pull: prefill never asks a decode process that it has lost", pull=True)
class NeverAsks(PrefillMachine):
    def _reconcile(self, name: str, now: float) -> None:
        return

    def _on_session_quiesced(self, peer: Peer, message: msg.SessionQuiesced, now: float) -> None:
        return


# -- I4: nothing outlives its life -------------------------------------------------------------------------------------


@_mutant("I4 leak", "what a peer said of rooms to come stays when the peer is gone")
class KeepsTheInbox(PrefillMachine):
    def _peer_gone(self, peer: Peer, links: list[RoomLink], now: float) -> None:
        kept = [early for early in self._inbox._by_peer.values() if early.peer is peer]
        super()._peer_gone(peer, links, now)
        for early in kept:
            self._inbox.put(early)


@_mutant("I4 leak", "prefill never answers an abort")
class NeverQuiesces(PrefillMachine):
    def _push(self, peer: Peer, message: msg.Message) -> None:
        if not isinstance(message, msg.Quiesced):
            super()._push(peer, message)


@_mutant("I4 leak", "the proof that a lost process can't write is never asked for again")
class NeverReconciles(DecodeMachine):
    def _owes_proof(self, name: str) -> bool:
        return False

    def _reconcile(self, name: str, now: float) -> None:
        return


class _Chatty(ReliableLink):
    def on_data(self, seq: int, messages: Sequence[msg.Message], now: float) -> list[msg.Message]:
        due = super().on_data(seq, messages, now)
        self._ack_due = self._ack_due or now + 0.1
        return due


class _ChattyPrefill(PrefillMachine):
    def _new_peer(self, name: str, session: int, endpoint: str, now: float) -> Peer:
        peer = super()._new_peer(name, session, endpoint, now)
        peer.link = _Chatty()
        return peer


class _ChattyDecode(DecodeMachine):
    def _new_peer(self, name: str, session: int, endpoint: str, now: float) -> Peer:
        peer = super()._new_peer(name, session, endpoint, now)
        peer.link = _Chatty()
        return peer


MUTANTS.append(
    Mutant(
        "AcknowledgesForEver", "I4 leak", "acknowledgements are acknowledged",
        {Role.PREFILL: _ChattyPrefill, Role.DECODE: _ChattyDecode},
    )
)  # fmt: skip


@_mutant("I4 leak", "timers of a session that is dropped run on")
class KeepsTimers(DecodeMachine):
    def tick(self, now: float) -> list[Effect]:
        for kind, key in self._timers.due(now):
            self._on_timer[kind](key, now)
        return self._settle(now)


@_mutant("I4 leak", "a room that ended is kept among the live ones")
class KeepsRooms(DecodeMachine):
    def _settle_room(self, room: Room, now: float) -> None:
        super()._settle_room(room, now)
        if room.failure is not None and room.failure.code is FailureCode.PEER_LOST:
            self.live[room.life] = room


# -- I5: every room ends in bounded time -------------------------------------------------------------------------------


@_mutant("I5 time", "nobody waits for the bootstrap with a deadline")
class NoBootstrapDeadline(DecodeMachine):
    def _set_deadline(self, room: Room, when: float) -> None:
        if room.phase is not Phase.OPEN:
            super()._set_deadline(room, when)


@_mutant("I5 time", "a room that moves bytes has no deadline")
class NoTransferDeadline(PrefillMachine):
    def _set_deadline(self, room: Room, when: float) -> None:
        if room.phase is not Phase.MOVING:
            super()._set_deadline(room, when)


@_mutant("I5 time", "prefill renews the lease of rooms that it has lost")
class RenewsLostRooms(PrefillMachine):
    def _renew_leases(self, peer: Peer, now: float) -> None:
        self._push(peer, msg.Lease(list(range(1, 40))))
        self._timers.set(("lease", peer), now + self.settings.lease_s / 3)

    def _say_failed(self, peer: Peer, number: int, life: int, failure: Failure, *, quiescent: bool = True) -> None:
        if failure.code is not FailureCode.TIMEOUT:
            super()._say_failed(peer, number, life, failure, quiescent=quiescent)


@_mutant("I5 time", "lost messages are not sent again")
class NeverRetransmits(PrefillMachine):
    def _new_peer(self, name: str, session: int, endpoint: str, now: float) -> Peer:
        peer = super()._new_peer(name, session, endpoint, now)
        peer.link = _Forgetful()
        return peer


class _Forgetful(ReliableLink):
    def tick(self, now: float) -> tuple[bool, list[tuple[int, list[msg.Message]]]]:
        return super().tick(now)[0], []


# -- I6: the first root cause ------------------------------------------------------------------------------------------


@_mutant("I6 cause", "the last cause is kept, not the first")
class LastCauseWins(DecodeMachine):
    def _fail_with(self, room: Room, failure: Failure, now: float) -> None:
        if room.phase is Phase.FAILED:
            room.failure = failure
        super()._fail_with(room, failure, now)


@_mutant("I6 cause", "whatever failed at decode, prefill reports the transport")
class BlamesTheTransport(PrefillMachine):
    def _on_abort(self, peer: Peer, message: msg.Abort, now: float) -> None:
        failure = replace(message.failure.failure(), code=FailureCode.TRANSPORT_ERROR, side=Side.FABRIC)
        super()._on_abort(peer, msg.Abort(message.room, message.life, msg.WireFailure.of(failure)), now)


@_mutant("I6 cause", "an early abort leaves no tombstone")
class NoTombstones(PrefillMachine):
    def _bury(self, number: int, failure: Failure, now: float, **more: Any) -> None:
        return


# -- I7: one room's failure is its own ---------------------------------------------------------------------------------


@_mutant("I7 isolation", "when one room fails, all rooms of its peer do")
class FailsAllRooms(PrefillMachine):
    def chunk_failed(self, chunk: TransferKVChunk, message: str, now: float, *, quiescent: bool) -> list[Effect]:
        effects = super().chunk_failed(chunk, message, now, quiescent=quiescent)
        for link in list(chunk.link.peer.rooms.values()):
            self._fail(link.room, FailureCode.TRANSPORT_ERROR, message, Side.FABRIC, now=now)
        return effects + self._settle(now)


@_mutant("I7 isolation", "life numbers are ignored: a message of an old life finds the room that has the number now")
class IgnoresLives(DecodeMachine):
    def _link(self, peer: Peer, life: int) -> RoomLink | None:
        link = super()._link(peer, life)
        return link if link is not None else next(iter(peer.rooms.values()), None)


@_mutant("I7 isolation", "a late double of a greeting revives a session that has ended")
class RevivesSessions(PrefillMachine):
    def _peer_gone(self, peer: Peer, links: list[RoomLink], now: float) -> None:
        super()._peer_gone(peer, links, now)
        self._ended.clear()


@_mutant("I7 isolation", "who was lost once is shunned for ever")
class ShunsForEver(DecodeMachine):
    def _peer_gone(self, peer: Peer, links: list[RoomLink], now: float) -> None:
        super()._peer_gone(peer, links, now)
        self._dead[peer.name] = float("inf")


@_mutant("I7 isolation", "decode renews no leases while it queues")
class RenewsNothing(DecodeMachine):
    def _renews(self, link: RoomLink) -> bool:
        return False


@_mutant("I7 isolation", "a duplicate opening takes the number from the live room")
class DuplicatesTakeOver(PrefillMachine):
    def _refuse_room(self, room: Room, code: FailureCode, message: str, now: float) -> None:
        super()._refuse_room(room, code, message, now)
        other = self.table.get(room.number)
        if code is FailureCode.DUPLICATE_ROOM and other is not None:
            self._fail(other, code, message, Side.PREFILL, now=now)


@_mutant("I7 isolation", "each break of a flapping connection counts as a missed probe")
class CountsFlaps(DecodeMachine):
    def on_connection_lost(self, endpoint: str, now: float) -> list[Effect]:
        effects = super().on_connection_lost(endpoint, now)
        for peer in self._at(endpoint):
            if peer.phase is PeerPhase.READY:
                self._probe(peer, now)
        return effects + self._settle(now)


@_mutant("I7 isolation", "messages are taken in the order in which they arrive")
class TakesAsItComes(PrefillMachine):
    def _new_peer(self, name: str, session: int, endpoint: str, now: float) -> Peer:
        peer = super()._new_peer(name, session, endpoint, now)
        peer.link = _Hasty()
        return peer


class _Hasty(ReliableLink):
    def on_data(self, seq: int, messages: Sequence[msg.Message], now: float) -> list[msg.Message]:
        fresh = [m for i, m in enumerate(messages, seq) if i > self._received and i not in self._early]
        super().on_data(seq, messages, now)
        return fresh


# -- I8: the history ---------------------------------------------------------------------------------------------------


@_mutant("I8 history", "what ended a room is not written down")
class WritesNoCause(PrefillMachine):
    @staticmethod
    def _note_failure(room: Room, failure: Failure, now: float) -> None:
        return


@_mutant("I8 history", "a history grows with its room")
class WritesForEver(PrefillMachine):
    def open(
        self, number: object, addr: str, now: float, *, traceparent: str | None = None
    ) -> tuple[Room, list[Effect]]:
        room, effects = super().open(number, addr, now, traceparent=traceparent)
        if room.history is not None:
            room.history._free = 1_000_000
        return room, effects
