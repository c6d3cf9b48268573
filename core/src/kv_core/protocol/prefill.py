"""The prefill side: takes the pages that decode names, hands chunks to the transfer queues, and says when all landed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import DigestMode, FailureCode, FailureStage, Side
from kv_core.contract.failures import Failure, MessageError
from kv_core.contract.interfaces import Ready
from kv_core.contract.moments import ANNOUNCED, HANDED, LANDED, METADATA, PAGES, VERDICT
from kv_core.contract.records import KVTransferMetric, RoomEventKind
from kv_core.protocol import messages as msg
from kv_core.protocol.chunks import ChunkResult, TransferKVChunk
from kv_core.protocol.effects import Effect, SubmitChunk
from kv_core.protocol.handshake import LayoutRules
from kv_core.protocol.identity import Identity
from kv_core.protocol.inbox import Early, Inbox, Stone, Tombstones
from kv_core.protocol.lifecycle import Action, Event, Phase
from kv_core.protocol.peers import Peer, PeerPhase
from kv_core.protocol.pulling import readable
from kv_core.protocol.reception import Reception
from kv_core.protocol.rooms import U64, PendingChunk, Room, RoomLink

INBOX_MESSAGES = 8
"""The inbox holds as many bytes as this many messages of the greatest length."""


class PrefillMachine(Reception):
    """Machine of a prefill rank. See ``Machine`` for the rules of calling it."""

    def __init__(self, me: Identity, settings: TransferConfig, rules: LayoutRules) -> None:
        super().__init__(me, settings, rules)
        self._inbox = Inbox(settings.max_inbox, INBOX_MESSAGES * settings.max_message_bytes)
        self._stones = Tombstones(settings.max_tombstones)
        self._unregistered = ""  # why decode can't find this rank, if that is known
        self._actions |= {Action.BIND: self._bind, Action.DONE: self._say_done, Action.DRAIN: self._drain}
        self._on_timer |= {"early": self._early_expired, "stones": self._expire_stones}
        self._on_message |= {
            msg.Announce: self._on_announce, msg.Metadata: self._on_metadata, msg.Abort: self._on_abort,
            msg.Concluded: self._on_concluded, msg.Lease: self._on_lease,
        }  # fmt: skip
        if not self.moves:
            self._on_message[msg.Pulled] = self._on_pulled

    # -- engine calls ----------------------------------------------------------------------------------------------

    def open(
        self, number: object, addr: str, now: float, *, traceparent: str | None = None
    ) -> tuple[Room, list[Effect]]:
        """Open a room; what decode said of it before is taken up now."""
        room = self._open(number, addr, traceparent, now)
        if room.listed:
            ended = self._stones.opened(room.number)
            early = self._inbox.take_room(room.number)
            if ended is not None and (not early or ended.destinations > 1):
                room.required = ended.destinations
                self._fail_with(room, ended.failure, now)
                if ended.destinations == 1:
                    self._stones.drop(room.number)  # the one that it is for knows
            for news in early:
                self._timers.cancel(("early", (news.peer, news.life)))
                self._take_up(room, news, now)
        return room, self._settle(now)

    def init(self, room: Room, num_kv_indices: int, aux_index: int | None, now: float) -> list[Effect]:
        """The engine announces how much it will send."""
        if room.ended:
            self.counters["ignored_init"] += 1
        elif room.expected is not None:
            self._invalid(room, f"init() was called twice (first with {room.expected} pages)", now)
        else:
            self._expect(room, num_kv_indices, aux_index, now)
        return self._settle(now)

    def _expect(self, room: Room, num_kv_indices: int, aux_index: int | None, now: float) -> None:
        try:
            room.coverage = self.rules.coverage(num_kv_indices)
        except ValueError as error:
            self._invalid(room, f"init(): {error}", now)
            return
        room.expected = num_kv_indices
        room.note((now, PAGES, num_kv_indices))
        room.aux_index = aux_index
        if room.phase is not Phase.OPEN:
            self._check_counts(room, now)

    def send(
        self, room: Room, local: U64, states: dict[str, U64], layers: range | None, ready: Ready | None, now: float
    ) -> list[Effect]:
        """The engine hands over a chunk."""
        if room.ended:
            self.counters["ignored_sends"] += 1
        elif room.expected is None:
            self._invalid(room, "send() came before init(): announce the number of pages first", now)
        elif room.complete:
            self._invalid(room, f"send() came after all {room.expected} announced pages had been sent", now)
        elif local.size or states or room.expected == 0:
            self._take_chunk(room, local, states, layers, ready, now)
        return self._settle(now)

    def _take_chunk(
        self, room: Room, local: U64, states: dict[str, U64], layers: range | None, ready: Ready | None, now: float
    ) -> None:
        try:
            start = room.coverage.advance(int(local.size), layers)
        except ValueError as error:
            self._invalid(room, f"send(): {error}", now)
            return
        placed = {}
        for pool, items in states.items():
            placed[pool] = (room.sent_states.get(pool, 0), items)
            room.sent_states[pool] = placed[pool][0] + int(items.size)
        room.complete = bool(room.coverage.complete)
        chunk = PendingChunk(start, local, placed, layers, ready, room.complete, room.handed)
        room.note((now, HANDED, room.handed, local.size))
        room.handed += 1
        if room.phase is Phase.OPEN:
            room.waiting.append(chunk)
        else:
            self._dispatch(room, chunk, now)

    def on_registered(self, problem: str, now: float) -> list[Effect]:
        """How the registration with the bootstrap server went: a sentence, or empty for well."""
        self._unregistered = problem
        return self._settle(now)

    # -- chunks ----------------------------------------------------------------------------------------------------

    def _dispatch(self, room: Room, chunk: PendingChunk, now: float) -> None:
        problem = self._misfit(room, chunk)
        if problem:
            self._invalid(room, problem, now)
            return
        digest = self._digests(room)
        for link in room.links.values():
            assert link.pages is not None, "a bound link has pages"
            states = {
                pool: (start, items, link.states[pool][start : start + items.size])
                for pool, (start, items) in chunk.states.items()
                if link.moves(pool)
            }
            aux = None
            if chunk.last and link.aux_index is not None and room.aux_index is not None and link.moves("aux"):
                aux = (room.aux_index, link.aux_index)
            whole = TransferKVChunk(
                room, link, link.peer.key, chunk.start, chunk.local, link.pages, chunk.layers, states, aux,
                chunk.ready, digest, number=chunk.number, prefix=link.prefix_len,
            )  # fmt: skip
            problem = None if self.moves else self._unspeakable(room, whole)
            if problem:
                self._fail(room, FailureCode.OVERLOADED, f"send(): {problem}", Side.PREFILL, now=now)
                return
            room.unfinished += 1
            self._effects.append(SubmitChunk(whole))

    def _unspeakable(self, room: Room, chunk: TransferKVChunk) -> str | None:
        """Pull: why decode can't be told of the chunk."""
        most = self.settings.max_indices
        if chunk.start + chunk.local.size > most or any(local.size > most for _, local, _ in chunk.states.values()):
            return f"{chunk.start + chunk.local.size} pages, TransferConfig.max_indices is {most}"
        return self._too_long(readable(room, chunk.link.life, chunk))

    @staticmethod
    def _misfit(room: Room, chunk: PendingChunk) -> str | None:
        for link in room.links.values():
            for pool, (start, items) in chunk.states.items():
                if not link.moves(pool):
                    continue
                named = link.states.get(pool)
                if named is None or start + items.size > named.size:
                    count = 0 if named is None else named.size
                    return f"send(): {start + items.size} items of state {pool!r}, but decode named {count}"
            if chunk.last:
                for pool, named in link.states.items():
                    if link.moves(pool) and room.sent_states.get(pool, 0) != named.size:
                        sent = room.sent_states.get(pool, 0)
                        return (
                            f"all pages were sent, but {sent} of {named.size} items of state {pool!r} that decode named"
                        )
                if link.aux_index is not None and room.aux_index is None and link.moves("aux"):
                    return "decode expects an auxiliary row, but init() was given no aux_index"
        return None

    def _digests(self, room: Room) -> bool:
        if self.settings.digest is not DigestMode.SAMPLED:
            return self.settings.digest is DigestMode.ALL
        spread = (room.number * 0x9E3779B97F4A7C15 >> 32) & 0xFFFFFFFF  # Fibonacci hashing: room numbers may be regular
        return spread % self.settings.digest_sample == 0

    def _claimed(self, room: Room, now: float) -> None:
        if room.phase is Phase.READY:
            self._apply(room, Event.STARTED, now)
            self._set_deadline(room, now + self.settings.transferring_timeout_s)
        self._tell(room, RoomEventKind.CHUNK_POSTED, now)

    def chunk_readable(
        self, chunk: TransferKVChunk, digest: msg.ChunkDigest | None, aux_rows: tuple[bytes, ...], now: float
    ) -> list[Effect]:
        """Pull: the chunk's source is complete, and was hashed if need be. From now on the peer may read it."""
        room, link = chunk.room, chunk.link
        if not room.ended and link.peer.phase is PeerPhase.READY:
            if digest is not None:
                link.digests.append(digest)
            link.aux_rows.extend(aux_rows)
            link.nbytes += sum(map(len, aux_rows))
            room.nbytes += sum(map(len, aux_rows))
            link.reading[chunk.number] = chunk
            link.exposed = True
            self._push(link.peer, readable(room, link.life, chunk, by_message=bool(aux_rows)))
        self._one_quiescent(link, now)
        return self._settle(now)

    def chunk_landed(self, chunk: TransferKVChunk, result: ChunkResult, now: float) -> list[Effect]:
        """Every byte of the chunk is visible at the other side; it is quiescent."""
        room, link = chunk.room, chunk.link
        self._count_landed(chunk, result, now)
        self._one_quiescent(link, now)
        self._check_landed(room, now)
        return self._settle(now)

    def _count_landed(self, chunk: TransferKVChunk, result: ChunkResult, now: float) -> None:
        room, link = chunk.room, chunk.link
        chunk.settled = True
        room.note(
            (now, LANDED, chunk.number, link.peer.name, result.nbytes, result.started, result.stopped, result.latency_source)
        )  # fmt: skip
        room.unfinished -= 1
        if not room.ended:
            room.clock.add(result.started, result.stopped)
            room.latency_source = result.latency_source
            room.nbytes += result.nbytes
            link.nbytes += result.nbytes
            if result.nbytes or chunk.aux is not None:
                link.chunks += 1
                room.moved.add(chunk.number)
            room.last_move = now
            if result.digest is not None:
                link.digests.append(result.digest)
            link.aux_rows.extend(result.aux_rows)
            if link.peer.phase is PeerPhase.READY:
                self._sign_of_life(link.peer, now)

    def _check_landed(self, room: Room, now: float) -> None:
        if room.complete and not room.unfinished and not room.waiting and not room.ended:
            self._apply(room, Event.LANDED, now)

    # -- actions ---------------------------------------------------------------------------------------------------

    def _bind(self, room: Room, now: float) -> None:
        room.bootstrapped_at = room.bound_at = now
        for key, link in list(room.links.items()):
            if link.pages is None:  # announced, but not among the destinations
                del room.links[key]
                self._let_go(link)
                self._say_failed(link.peer, room.number, link.life, _taken(room, self.me.label))
        for link in room.links.values():
            assert link.peer.layout is not None, "a session has a layout"
            room.decode_prefix_len = max(room.decode_prefix_len, link.peer.layout.prefix_pages(link.prefix_len))
            self._push(link.peer, msg.Bound(room.number, link.life, room.life, room.traceparent))
        self._set_deadline(room, now + self.settings.waiting_timeout_s)
        if self._check_counts(room, now):
            waiting, room.waiting = room.waiting, []
            for chunk in waiting:
                if not room.ended:
                    self._dispatch(room, chunk, now)

    def _check_counts(self, room: Room, now: float) -> bool:
        if room.expected is None:
            return True
        for link in room.links.values():
            assert link.pages is not None, "a bound link has pages"
            assert link.peer.layout is not None, "a session has a layout"
            problem = link.peer.layout.mismatch(room.expected, int(link.pages.size), link.prefix_len)
            if problem:
                self._invalid(room, problem, now)
                return False
        return True

    def _say_done(self, room: Room, now: float) -> None:
        self._set_deadline(room, now + self.settings.transferring_timeout_s)
        for link in room.links.values():
            assert link.pages is not None, "a bound link has pages"
            done = msg.Done(
                room.number, link.life, room.life, int(link.pages.size), link.nbytes, self._wire_seconds(room),
                room.latency_source, link.chunks, link.digests, link.aux_rows,
            )  # fmt: skip
            problem = self._too_long(done)
            if problem:
                self._fail(room, FailureCode.OVERLOADED, f"the end of the room: {problem}", Side.PREFILL, now=now)
                return
            self._push(link.peer, done)
        if all(link.verdict for link in room.links.values()):  # nobody needed anything of us, and all is well
            self._apply(room, Event.AGREED, now)

    def _drain(self, room: Room, now: float) -> None:
        room.waiting.clear()
        failure = room.failure
        assert failure is not None, "a failed room has a failure"
        if len(room.links) < room.required:
            self._bury(room.number, failure, now, told=len(room.links))
        for link in list(room.links.values()):
            if link.peer.phase is PeerPhase.GONE:
                continue
            if not link.told:
                quiescent = not (self.moves and link.outstanding)
                self._say_failed(link.peer, room.number, link.life, failure, quiescent=quiescent)
            if self.moves and link.outstanding:
                link.owes_quiesced = True
            self._let_go(link)

    def _report(self, room: Room, now: float) -> None:
        super()._report(room, now)
        if room.phase is Phase.SUCCESS:
            for link in room.links.values():
                self._let_go(link)

    def _wire_seconds(self, room: Room) -> float:
        """How long bytes were on the wire: as this side has seen it, or as those who read have told."""
        return room.clock.seconds if self.moves else room.remote_wire_s

    def _metric(self, room: Room, now: float) -> KVTransferMetric:
        bound = room.bound_at if room.bound_at is not None else now
        return KVTransferMetric(
            transfer_latency_s=self._wire_seconds(room), transfer_total_bytes=room.nbytes,
            alloc_latency_s=bound - room.opened_at, bootstrap_latency_s=bound - room.opened_at,
            queue_latency_s=max(0.0, room.clock.first - bound) if room.clock.first is not None else None,
            total_latency_s=now - room.opened_at, chunks=len(room.moved), latency_source=room.latency_source,
        )  # fmt: skip

    def _say_failed(self, peer: Peer, number: int, life: int, failure: Failure, *, quiescent: bool = True) -> None:
        self._push(peer, msg.Failed(number, life, msg.WireFailure.of(failure), quiescent))

    def _bury(self, number: int, failure: Failure, now: float, **more: Any) -> None:
        self._stones.put(number, Stone(failure, now + self.settings.bootstrap_timeout_s, **more))
        if self._timers.get(("stones", 0)) is None:
            self._timers.set(("stones", 0), now + self.settings.bootstrap_timeout_s)

    def _expire_stones(self, key: int, now: float) -> None:
        self._stones.expire(now)
        if len(self._stones):
            self._timers.set(("stones", key), now + self.settings.bootstrap_timeout_s / 4)

    # -- messages --------------------------------------------------------------------------------------------------

    def _on_announce(self, peer: Peer, message: msg.Announce, now: float) -> None:
        expires = now + self.settings.lease_s
        trace = self._read_traceparent(message.traceparent)
        self._on_early(Early(message.room, peer, message.life, None, expires, message.destinations, trace), now)

    def _on_metadata(self, peer: Peer, message: msg.Metadata, now: float) -> None:
        expires = now + self.settings.waiting_timeout_s
        known = self._inbox.get(peer, message.life)
        trace = None if known is None else known.traceparent
        early = Early(message.room, peer, message.life, message, expires, message.destinations, trace)
        link = peer.rooms.get(message.life)
        if link is not None and not link.room.ended and link.pages is None:
            self._adopt(link.room, early, now)
        elif link is None and known is not None:
            self._on_early(early, now)
        else:
            # Each life is announced first. One that is not known any more was told that it failed, and its pages may
            # be in use again by the time that what it said before arrives here: it must not find a new room.
            self.counters["stale_messages"] += 1

    def _on_early(self, early: Early, now: float) -> None:
        """News of a life that no open room here knows yet."""
        ended = self._stones.announced(early) if early.metadata is None else None
        room = self.table.get(early.number)
        if ended is not None:
            self._say_failed(early.peer, early.number, early.life, ended)
        elif room is not None and not room.ended:
            self._take_up(room, early, now)
        elif self._inbox.put(early):
            self._timers.set(("early", (early.peer, early.life)), early.expires)
        else:
            self._say_failed(
                early.peer, early.number, early.life,
                Failure(
                    FailureStage.QUEUED, FailureCode.OVERLOADED,
                    f"{len(self._inbox)} rooms wait here to be opened, TransferConfig.max_inbox allows no more",
                    Side.PREFILL, True, self.me.label,
                ),
            )  # fmt: skip

    def _take_up(self, room: Room, early: Early, now: float) -> None:
        """News for a room of this number: it is the room's, unless others came first."""
        if room.phase is Phase.OPEN:
            self._adopt(room, early, now)
        else:
            self._say_failed(early.peer, early.number, early.life, room.failure or _taken(room, self.me.label))

    def _adopt(self, room: Room, early: Early, now: float) -> None:
        """Take up what a decode rank said of a room that is open."""
        key = (early.peer.name, early.life)
        link = room.links.get(key)
        if link is None:
            link = room.links[key] = RoomLink(room, early.peer, early.life)
            early.peer.rooms[early.life] = link
            room.note((now, ANNOUNCED, early.peer.name, early.life))
            room.peer_traceparent = room.peer_traceparent or early.traceparent
        room.required = max(room.required, early.destinations)
        link.keep_until = now + self.settings.lease_s if early.metadata is None else early.expires
        self._await_destinations(room)
        if early.metadata is None:
            return
        problem = self._read_metadata(link, early.metadata)
        count = 0 if link.pages is None else link.pages.size
        room.note((now, METADATA, early.peer.name, early.life, count, early.metadata.decode_prefix_len))
        if problem:
            self._invalid(room, f"decode named pages that can't be: {problem}", now, Side.DECODE)
            return
        if sum(each.pages is not None for each in room.links.values()) >= room.required:
            self._apply(room, Event.PEERS_KNOWN, now)

    def _await_destinations(self, room: Room) -> None:
        """Until when a room with destinations may stay open: none of them may lose its patience."""
        self._set_deadline(room, min(link.keep_until for link in room.links.values()))

    def _read_metadata(self, link: RoomLink, metadata: msg.Metadata) -> str | None:
        layout = link.peer.layout
        assert layout is not None, "a peer that is ready has a layout"
        try:
            pages = metadata.kv.array()
            states = {pool: items.array() for pool, items in metadata.states.items()}
        except MessageError as error:
            return str(error)
        rows = np.array([] if metadata.aux_index is None else [metadata.aux_index], np.uint64)
        for pool, items in {"kv": pages, "aux": rows, **states}.items():
            problem = self._out_of_bounds(layout, pool, items)
            if problem:
                return problem
        link.pages, link.states, link.aux_index = pages, states, metadata.aux_index
        link.prefix_len = metadata.decode_prefix_len
        return None

    def _on_abort(self, peer: Peer, message: msg.Abort, now: float) -> None:
        failure = message.failure.failure()
        link = peer.rooms.get(message.life)
        early = self._inbox.pop(peer, message.life)
        if early is not None:
            self._timers.cancel(("early", (peer, message.life)))
            self._bury(
                message.room, failure, now, remote=True, peer=peer.name, destinations=early.destinations
            )  # fmt: skip
        if link is not None:
            link.told = True
            if self.moves and link.outstanding:
                link.owes_quiesced = True
            if not link.room.ended:
                self._fail_with(link.room, failure, now)
        if self.moves and (link is None or not link.outstanding):
            # Messages come in order, so a life that is unknown or idle here can't be written by us any more.
            self._push(peer, msg.Quiesced(message.room, message.life))

    def _on_pulled(self, peer: Peer, message: msg.Pulled, now: float) -> None:
        """A chunk was read, and is read no more."""
        link = peer.rooms.get(message.life)
        chunk = None if link is None else link.reading.pop(message.number, None)
        if link is None or chunk is None:
            self.counters["stale_messages"] += 1
            return
        room = link.room
        link.exposed = bool(link.reading)
        room.remote_wire_s = max(room.remote_wire_s, message.wire_seconds)
        result = ChunkResult(message.nbytes, now - message.seconds, now, message.latency_source)
        self._count_landed(chunk, result, now)
        if room.ended:
            self._let_go(link)
            self._settle_room(room, now)
        self._check_landed(room, now)

    def _on_concluded(self, peer: Peer, message: msg.Concluded, now: float) -> None:
        link = peer.rooms.get(message.life)
        if link is None or link.room.ended:
            self.counters["stale_messages"] += 1
            return
        if message.failure is None and link.room.phase is not Phase.CONFIRMING and not link.idle:
            self.counters["unexpected_messages"] += 1
            return
        link.told = True
        link.room.note((now, VERDICT, peer.name, message.life, message.failure is None))
        if message.failure is not None:
            self._fail_with(link.room, message.failure.failure(), now)
            return
        link.verdict = True
        if link.room.phase is Phase.CONFIRMING and all(each.verdict for each in link.room.links.values()):
            self._apply(link.room, Event.AGREED, now)

    def _on_lease(self, peer: Peer, message: msg.Lease, now: float) -> None:
        expires = now + self.settings.lease_s
        for life in message.lives:
            link = peer.rooms.get(life)
            early = self._inbox.get(peer, life)
            if link is not None and link.room.phase is Phase.OPEN:
                link.keep_until = expires
                self._await_destinations(link.room)
            elif link is not None and link.room.phase is Phase.CONFIRMING:  # decode waits for other ranks
                self._set_deadline(link.room, now + self.settings.transferring_timeout_s)
            elif early is not None and early.metadata is None:
                self._timers.set(("early", (peer, life)), expires)

    # -- time and peers --------------------------------------------------------------------------------------------

    def _early_expired(self, key: tuple[Peer, int], now: float) -> None:
        early = self._inbox.pop(*key)
        if early is None:
            return
        self.counters["early_expired"] += 1
        text = f"the prefill engine did not open the room within waiting_timeout_s={self.settings.waiting_timeout_s:g}"
        failure = Failure(FailureStage.QUEUED, FailureCode.UNKNOWN_ROOM, text, Side.PREFILL, True, self.me.label)
        self._say_failed(early.peer, early.number, early.life, failure)

    def _room_expired(self, life: int, now: float) -> None:
        room = self.live.get(life)
        if room is None or room.ended:
            return
        settings = self.settings
        deadline = room.last_move + settings.transferring_timeout_s
        if room.phase is Phase.MOVING and now < deadline:
            self._set_deadline(room, deadline)
            return
        peers = ", ".join(
            f"{link.peer} last heard {now - link.peer.liveness.last_life:.1f} s ago" for link in room.links.values()
        )
        text, side = {
            Phase.OPEN: (f"no decode rank asked for the room within bootstrap_timeout_s={settings.bootstrap_timeout_s:g}", Side.DECODE),
            Phase.READY: (f"the engine sent nothing within waiting_timeout_s={settings.waiting_timeout_s:g}", Side.PREFILL),
            Phase.MOVING: (f"no chunk moved within transferring_timeout_s={settings.transferring_timeout_s:g}", Side.FABRIC),
            Phase.CONFIRMING: (f"decode gave no verdict within transferring_timeout_s={settings.transferring_timeout_s:g}", Side.DECODE),
        }[room.phase]  # fmt: skip
        if room.phase is Phase.OPEN and room.links:
            text = f"decode queued for the room, then renewed its lease no more (lease_s={settings.lease_s:g})"
            if any(link.pages is not None for link in room.links.values()):
                text = f"not all of {room.required} decode ranks named pages within waiting_timeout_s={settings.waiting_timeout_s:g}"
        elif room.phase is Phase.OPEN and self._unregistered:
            text, side = f"{text}, and can't find this rank: {self._unregistered}", Side.BOOTSTRAP
        text = f"{text} ({now - room.opened_at:.1f} s after opening{'; ' + peers if peers else ''})"
        self._fail(room, FailureCode.TIMEOUT, text, side, now=now, retryable=True)

    def _renews(self, link: RoomLink) -> bool:
        return not link.room.ended and link.room.phase is not Phase.OPEN

    def _refuse(self, packet: msg.Hello, failure: Failure, now: float) -> None:
        super()._refuse(packet, failure, now)
        self._fail_numbers(packet.rooms, failure, packet.sender, now)

    def _shut_out(self, peer: Peer, failure: Failure, now: float, *, by_us: bool) -> None:
        super()._shut_out(peer, failure, now, by_us=by_us)
        self._fail_numbers([*peer.told_rooms, *self._inbox.numbers(peer)], failure, peer.name, now)

    def _fail_numbers(self, numbers: Iterable[int], failure: Failure, sender: str, now: float) -> None:
        """Rooms that a decode rank waits for, and that nothing links to it yet: they fail, also those to be opened later."""
        for number in numbers:
            room = self.table.get(number)
            if room is not None and room.phase is Phase.OPEN and not room.links:
                self._fail_with(room, failure, now)
                self._stones.drop(number)
            elif room is None:
                self._bury(number, failure, now, remote=True, peer=sender)

    def _peer_gone(self, peer: Peer, links: list[RoomLink], now: float) -> None:
        super()._peer_gone(peer, links, now)
        for early in self._inbox.take_peer(peer):
            self._timers.cancel(("early", (peer, early.life)))

    def snapshot(self) -> dict[str, Any]:
        """See ``Machine.snapshot``; adds what waits for the engine."""
        return super().snapshot() | {
            "early_rooms": len(self._inbox), "tombstones": len(self._stones), "leases": len(self._inbox) + sum(
                1 for room in self.live.values() if room.phase is Phase.OPEN and room.links
            ),
        }  # fmt: skip

    def _pages(self, room: Room) -> int:
        return room.expected or 0


def _taken(room: Room, label: str) -> Failure:
    return Failure(
        FailureStage.QUEUED, FailureCode.DUPLICATE_ROOM,
        f"room {room.number} is taken by another decode rank: bootstrap_room must be unique", Side.DECODE, False, label,
    )  # fmt: skip
