"""How the prefill side takes decode ranks in: greetings, refusals, sessions that end and what they leave behind."""

from __future__ import annotations

from collections import OrderedDict

from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import FailureCode, FailureStage, Side
from kv_core.contract.failures import Failure, MessageError
from kv_core.protocol import messages as msg
from kv_core.protocol.effects import AddPeer, Disconnect, SendPacket
from kv_core.protocol.handshake import Difference, LayoutRules, PeerLayout, refusal
from kv_core.protocol.identity import Identity
from kv_core.protocol.machine import ENDPOINT
from kv_core.protocol.peers import Peer
from kv_core.protocol.quiescence import Quiescence
from kv_core.protocol.rooms import RoomLink

MAX_ENDED = 4_096
"""Decode processes of which the last session that ended here is remembered, and those that are refused for good."""


class Reception(Quiescence):
    """The part of the prefill side that deals with sessions and not with rooms."""

    def __init__(self, me: Identity, settings: TransferConfig, rules: LayoutRules) -> None:
        super().__init__(me, settings, rules)
        self._ended: OrderedDict[str, int] = OrderedDict()  # the last session that ended here, by instance
        self._unwanted: OrderedDict[str, Failure] = OrderedDict()  # instances that were refused after their Welcome

    # -- greetings -------------------------------------------------------------------------------------------------

    def _on_hello(self, packet: msg.Hello, now: float) -> None:
        told = packet.introduction
        known = self.peers.get(packet.sender)
        if packet.receiver != self.me.instance_id or not ENDPOINT.fullmatch(told.endpoint):
            self.counters["misaddressed_hellos"] += 1
            if ENDPOINT.fullmatch(told.endpoint):
                self._reset(packet, told.endpoint)
            return
        unwanted = self._unwanted.get(packet.sender)
        if unwanted is not None:  # the fabric between two processes does not change
            self._refuse(packet, unwanted, now)
            return
        if packet.session <= self._ended.get(packet.sender, 0):
            # A late double, or a greeting that goes on although its session has ended here. Taken up once more, the
            # session would begin at message 1 on this side alone.
            self.counters["stale_packets"] += 1
            self._reset(packet, told.endpoint)
            return
        if known is not None and known.session >= packet.session:
            if known.session == packet.session:
                self._welcome(known)
            else:
                self.counters["stale_packets"] += 1
            return
        layout, problem = self._examine(packet, known)
        if problem is not None:
            self._refuse(packet, problem, now)
            return
        if known is not None:
            self._drop_peer(known, FailureCode.PEER_LOST, "began a new session (it had declared this side dead)", now)
        self._accept(packet, layout, now)

    def _accept(self, packet: msg.Hello, layout: PeerLayout | None, now: float) -> None:
        told = packet.introduction
        peer = self._new_peer(packet.sender, packet.session, told.endpoint, now)
        peer.introduction, peer.layout, peer.label = told, layout, told.label
        peer.told_rooms.update(packet.rooms)
        self._effects.append(AddPeer(peer.key, told.descriptor, layout, told.process))
        self._peer_ready(peer, now)
        self._welcome(peer)
        self._say_session_quiesced(peer)

    def _examine(self, packet: msg.Hello, known: Peer | None) -> tuple[PeerLayout | None, Failure | None]:
        told, mine = packet.introduction, self.me.introduction.fields
        if packet.version != msg.PROTOCOL_VERSION:
            found = [Difference("protocol_version", str(msg.PROTOCOL_VERSION), str(packet.version))]
            return None, refusal(found, self.me.role, self.me.label, told.label)
        if known is None and len(self.peers) >= self.settings.max_peers:
            text = f"{len(self.peers)} decode ranks are connected, TransferConfig.max_peers allows no more"
            return None, Failure(
                FailureStage.HANDSHAKE, FailureCode.OVERLOADED, text, Side.PREFILL, True, self.me.label, told.label
            )
        try:
            layout = self.rules.read(told.layout, told.fields)
            found = self.rules.differences(layout, mine, told.fields)
        except MessageError as error:
            return None, Failure(
                FailureStage.HANDSHAKE, FailureCode.INVALID_REQUEST, f"the memory layout that decode sent is wrong: {error}",
                Side.DECODE, False, self.me.label, told.label,
            )  # fmt: skip
        return layout, refusal(found, self.me.role, self.me.label, told.label) if found else None

    def _refuse(self, packet: msg.Hello, failure: Failure, now: float) -> None:
        self.counters["refused_handshakes"] += 1
        answer = msg.Refuse(
            sender=self.me.instance_id, receiver=packet.sender, session=packet.session,
            failure=msg.WireFailure.of(failure),
        )  # fmt: skip
        self._effects.append(SendPacket(packet.introduction.endpoint, answer))

    def _shut_out(self, peer: Peer, failure: Failure, now: float, *, by_us: bool) -> None:
        super()._shut_out(peer, failure, now, by_us=by_us)
        if by_us:
            self._unwanted[peer.name] = failure
            while len(self._unwanted) > MAX_ENDED:
                self._unwanted.popitem(last=False)

    def _welcome(self, peer: Peer) -> None:
        self._send(peer, msg.Welcome(**self._header(peer), introduction=self.me.introduction))

    # -- the end of a session --------------------------------------------------------------------------------------

    def _peer_gone(self, peer: Peer, links: list[RoomLink], now: float) -> None:
        self._ended.pop(peer.name, None)
        self._ended[peer.name] = peer.session
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
        super()._peer_gone(peer, links, now)

    def _reconcile(self, name: str, now: float) -> None:
        """Ask about the lost session. Only decode greets, and it may have no reason to; its ``Reset`` answers."""
        links = self._orphans.get(name)
        if not links:
            return
        if name not in self.peers:  # else the new session says it all
            lost = max((link.peer for link in links), key=lambda peer: peer.session)
            self._effects.append(
                SendPacket(lost.endpoint, msg.Ping(**self._header(lost), number=0, ack=0, endpoint=self.me.endpoint))
            )
        self._timers.set(("reconcile", name), now + self._patience_s)

    def _stop_asking(self, lost: Peer) -> None:
        self._timers.cancel(("reconcile", lost.name))
        if not self._at(lost.endpoint):
            self._effects.append(Disconnect(lost.endpoint))
