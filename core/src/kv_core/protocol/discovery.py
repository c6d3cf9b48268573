"""How the decode side finds prefill ranks: bootstrap servers, their routes and their liveness, greetings and refusals."""

from __future__ import annotations

from collections import OrderedDict

from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import FailureCode, FailureStage, Liveness, Side
from kv_core.contract.failures import Failure
from kv_core.contract.moments import LINKED, TROUBLE
from kv_core.protocol import messages as msg
from kv_core.protocol.effects import Disconnect, Effect, Resolve, Unwatch, Watch
from kv_core.protocol.handshake import Difference, LayoutRules, refusal
from kv_core.protocol.identity import Identity
from kv_core.protocol.lifecycle import Event, Phase
from kv_core.protocol.liveness import PeerLiveness
from kv_core.protocol.nodes import FIRST_RETRY_S, MAX_RETRY_S, Node, ProbeResult, Ranks, Route, RouteError
from kv_core.protocol.peers import Peer, PeerPhase, Regret
from kv_core.protocol.quiescence import Quiescence
from kv_core.protocol.rooms import Room, RoomLink

HELLO_RETRY_S = 0.5
NODE_IDLE_S = 10.0
"""How often a prefill instance that nobody asks for is considered for forgetting."""
MAX_DEAD = 4_096
"""Instances remembered as lost, so that a stale route to them is not followed for a while."""
MAX_HELLO_ROOMS = 4_096


class Discovery(Quiescence):
    """The part of the decode side that comes before a room's first page."""

    def __init__(self, me: Identity, settings: TransferConfig, rules: LayoutRules, first_session: int = 1) -> None:
        super().__init__(me, settings, rules)
        self.nodes: dict[str, Node] = {}
        self._session = first_session
        self._dead: OrderedDict[str, float] = OrderedDict()  # lost instances: until when they are shunned
        self._on_timer |= {"hello": self._greet, "resolve": self._resolve, "node": self._forget_idle_node}

    # -- routes ----------------------------------------------------------------------------------------------------

    def _find_sources(self, room: Room, now: float) -> None:
        node = self._node(room.addr, now)
        node.waiting[room.life] = room
        if node.route is not None:
            self._attach_waiting(node, now)
        else:
            self._resolve_soon(node, now)

    def _node(self, addr: str, now: float) -> Node:
        node = self.nodes.get(addr)
        if node is None:
            settings = self.settings
            liveness = PeerLiveness(settings.probe_interval_s, settings.suspect_after, settings.dead_after, now)
            node = self.nodes[addr] = Node(addr, liveness)
            self._timers.set(("node", addr), now + NODE_IDLE_S)
        return node

    def _resolve_soon(self, node: Node, now: float) -> None:
        if not node.resolving and self._timers.get(("resolve", node.addr)) is None:
            self._resolve(node.addr, now)

    def _resolve(self, addr: str, now: float) -> None:
        node = self.nodes.get(addr)
        if node is None or node.resolving:
            return
        node.regrets = {number: regret for number, regret in node.regrets.items() if regret.until > now}
        if node.wanted:
            node.resolving = True
            self._effects.append(Resolve(addr))

    def on_route(self, addr: str, route: Route | RouteError, now: float) -> list[Effect]:
        """A bootstrap server answered ``Resolve``."""
        node = self.nodes.get(addr)
        if node is not None:
            node.resolving = False
            if isinstance(route, RouteError):
                self._no_route(node, route, now)
            else:
                node.route = route
                node.error = ""
                if not node.watched:
                    node.watched = True
                    self._effects.append(Watch(addr))
                self._attach_waiting(node, now)
        return self._settle(now)

    def _no_route(self, node: Node, error: RouteError, now: float) -> None:
        node.error = error.message
        if error.fatal:
            node.regrets.clear()
        for room in list(node.waiting.values()):
            self._note_trouble(room, error.message, now)
            if error.fatal:
                self._fail(
                    room, FailureCode.INCOMPATIBLE, error.message, Side.BOOTSTRAP, now=now, stage=FailureStage.BOOTSTRAP
                )
        self._resolve_later(node, now)

    def _resolve_later(self, node: Node, now: float) -> None:
        if node.wanted:
            self._timers.set(("resolve", node.addr), now + node.retry_s)
            # Never longer than a heartbeat: within one, a prefill process that was restarted shall be found.
            node.retry_s = min(2 * node.retry_s, MAX_RETRY_S, self.settings.probe_interval_s)

    def _attach_waiting(self, node: Node, now: float) -> None:
        for room in list(node.waiting.values()):
            if node.route is None:
                break
            if room.life in node.waiting:  # one that fails may have the others attached
                self._attach(node, node.route, room, now)
        if node.route is not None and node.regrets:
            self._pass_regrets_on(node, node.route, now)
        if node.wanted and node.route is None:
            self._resolve_later(node, now)
        elif not node.wanted:
            node.retry_s = FIRST_RETRY_S

    def _attach(self, node: Node, route: Route, room: Room, now: float) -> None:
        """Link a room to the ranks that must send to it."""
        try:
            sources = self.rules.sources(route.sizes, room.dp_rank, route.page_size)
            needed = [(route.ranks[ranks], count) for ranks, count in sources.required.items()]
            needed += [(route.ranks[ranks], 0) for ranks in sources.dummies]
        except (ValueError, KeyError) as error:
            text = f"the prefill instance at {node.addr} can't serve this decode rank: {error}"
            self._fail(room, FailureCode.INCOMPATIBLE, text, Side.UNKNOWN, now=now, stage=FailureStage.HANDSHAKE)
            return
        if any(self._dead.get(address.instance_id, now) > now for address, _ in needed):
            # The server still names a process that we lost: wait until its successor has registered. Not for ever: it
            # may have been cut off for a while, and the next greeting finds out.
            lost = f"the bootstrap server at {node.addr} still names a prefill process that is lost"
            self._note_trouble(room, lost, now)
            node.route = None
            return
        del node.waiting[room.life]
        node.regrets.pop(room.number, None)  # the number has begun anew
        node.destinations = max(sources.required.values(), default=1)
        for address, count in needed:
            peer = self.peers.get(address.instance_id)
            if peer is None:
                peer = self._new_greeting(address.instance_id, address.endpoint, node.addr, now)
            link = RoomLink(room, peer, room.life, max(count, 1), dummy=not count)
            room.links[(peer.name, room.life)] = link
            peer.rooms[room.life] = link
            room.note((now, LINKED, peer.name))
            peer.regrets.pop(room.number, None)  # the number has begun anew
            if peer.phase is PeerPhase.GREETING or peer.liveness.state is Liveness.SUSPECT:
                first = not peer.awaiting
                peer.awaiting[room.life] = room
                if first:
                    self._greet(peer, now)
        self._check_ready(room, now)

    @staticmethod
    def _note_trouble(room: Room, message: str, now: float) -> None:
        """Why no prefill rank can be found; the same again is no news."""
        if room.last_error != message:
            room.note((now, TROUBLE, message))
        room.last_error = message

    def _new_greeting(self, name: str, endpoint: str, addr: str, now: float) -> Peer:
        self._session += 1
        peer = self._new_peer(name, self._session, endpoint, now)
        peer.phase, peer.addr = PeerPhase.GREETING, addr
        return peer

    def _check_ready(self, room: Room, now: float) -> None:
        if (
            room.phase is not Phase.OPEN
            or not room.links
            or any(room.life in link.peer.awaiting for link in room.links.values())
        ):
            return
        missing = self._missing(room)
        if missing:
            failure = refusal(missing, self.me.role, self.me.label, f"the prefill instance at {room.addr}")
            self._fail_with(room, failure, now)
            return
        for link in room.links.values():
            # Now the layouts are known: who sends nothing to this rank is not waited for, and gets no pages to write.
            link.dummy = link.idle
        self._apply(room, Event.PEERS_KNOWN, now)

    def _missing(self, room: Room) -> list[Difference]:
        """What this rank needs and the ranks that serve the room lack; worked out once for the same sources."""
        node, peers = self.nodes.get(room.addr), [link.peer for link in room.links.values()]
        sources = frozenset(peer.key for peer in peers)
        if node is not None and node.whole == sources:
            return []
        missing = self.rules.missing([peer.layout for peer in peers if peer.layout is not None])
        if node is not None and not missing:
            node.whole = sources
        return missing

    def _recheck_waiting(self, peer: Peer, now: float) -> None:
        waiting = list(peer.awaiting.values())
        peer.awaiting.clear()
        for room in waiting:
            self._check_ready(room, now)

    def _leave_queues(self, room: Room) -> None:
        node = self.nodes.get(room.addr)
        if node is not None:
            node.waiting.pop(room.life, None)
        for link in room.links.values():
            link.peer.awaiting.pop(room.life, None)

    # -- rooms that ended before prefill had heard of them ------------------------------------------------------------

    def _regret_of(self, room: Room, destinations: int, failure: msg.WireFailure) -> Regret:
        return Regret(room.life, destinations, failure, room.opened_at + self.settings.bootstrap_timeout_s)

    def _regret(self, peer: Peer, number: int, regret: Regret) -> None:
        """Let prefill know: its engine may be waiting for us, or open the room later."""
        if peer.phase is PeerPhase.GREETING:
            if len(peer.regrets) < MAX_HELLO_ROOMS:
                peer.regrets[number] = regret
        else:
            self._push(peer, msg.Announce(number, regret.life, regret.destinations))
            self._push(peer, msg.Abort(number, regret.life, regret.failure))

    def _regret_unlinked(self, room: Room, failure: msg.WireFailure, now: float) -> None:
        """Which ranks it would have needed is not known yet: all of the instance hear of it, the known ones at once. If
        there is none and our engine gave the room up, they do as soon as there is a route.
        """
        node = self.nodes.get(room.addr)
        regret = self._regret_of(room, node.destinations if node is not None else 1, failure)
        known = [peer for peer in self.peers.values() if peer.addr == room.addr]
        for peer in known:
            self._regret(peer, room.number, regret)
        if known or regret.until <= now or not self._is_news(room, node):
            return
        if room.addr not in self.nodes and len(self.nodes) >= self.settings.max_peers:
            return  # nobody waits for these servers: what is asked of them for a regret alone must not grow for ever
        node = self._node(room.addr, now)
        if len(node.regrets) < MAX_HELLO_ROOMS:
            node.regrets[room.number] = regret
        if node.route is not None:
            self._attach_waiting(node, now)
        else:
            self._resolve_soon(node, now)

    @staticmethod
    def _is_news(room: Room, node: Node | None) -> bool:
        """Whether prefill ranks that were not met wait for a room of which they would not hear otherwise."""
        assert room.failure is not None, "a failed room has a failure"
        code = room.failure.code
        return code is FailureCode.ABORTED_LOCAL or (
            code is FailureCode.INCOMPATIBLE and node is not None and node.route is not None
        )

    def _pass_regrets_on(self, node: Node, route: Route, now: float) -> None:
        """There is a route now. Lost instances are not greeted for this alone."""
        regrets, node.regrets = node.regrets, {}
        for address in route.ranks.values():
            if self._dead.get(address.instance_id, now) > now:
                continue
            peer = self.peers.get(address.instance_id)
            new = peer is None
            if peer is None:
                peer = self._new_greeting(address.instance_id, address.endpoint, node.addr, now)
            for number, regret in regrets.items():
                self._regret(peer, number, regret)
            if new:
                self._greet(peer, now)

    # -- greeting --------------------------------------------------------------------------------------------------

    def _greet(self, peer: Peer, now: float) -> None:
        if peer.phase is not PeerPhase.GREETING:
            return
        for number, regret in list(peer.regrets.items()):
            if regret.until <= now:
                del peer.regrets[number]
        if not peer.awaiting and not peer.regrets and not self._owes_proof(peer.name):
            peer.phase = PeerPhase.GONE
            del self.peers[peer.name]
            if not self._at(peer.endpoint):
                self._effects.append(Disconnect(peer.endpoint))
            return
        numbers = [*(room.number for room in peer.awaiting.values()), *peer.regrets][:MAX_HELLO_ROOMS]
        peer.told_rooms.update(numbers)
        hello = msg.Hello(**self._header(peer), introduction=self.me.introduction, rooms=numbers)
        self._send(peer, hello)
        self._timers.set(("hello", peer), now + (HELLO_RETRY_S if numbers or peer.regrets else self._patience_s))

    def _on_premature(self, peer: Peer, now: float) -> None:
        soon = now + HELLO_RETRY_S  # the Welcome was lost, it seems: ask once more, before it takes us for dead
        if (self._timers.get(("hello", peer)) or soon) > soon:
            self._timers.set(("hello", peer), soon)

    def _session_ended(self, peer: Peer, now: float) -> None:
        if peer.phase is PeerPhase.GREETING:  # it gave us up before its Welcome came through: with a new number, then
            self._session += 1
            peer.session = self._session
        else:
            super()._session_ended(peer, now)
            self._dead.pop(peer.name, None)  # it lives

    def _refused(self, peer: Peer, failure: Failure, now: float) -> None:
        rooms = [link.room for link in peer.rooms.values()]  # those that wait for the handshake, or have just begun
        numbers = [*(room.number for room in rooms if not room.ended), *peer.regrets]
        untold = [number for number in numbers if number not in peer.told_rooms]
        if untold:  # prefill fails its rooms by the numbers in the Hello that it refuses
            header = self._header(peer)
            hello = msg.Hello(**header, introduction=self.me.introduction, rooms=untold[:MAX_HELLO_ROOMS])
            self._send(peer, hello)
        self._drop_peer(peer, failure.code, f"refused the handshake: {failure.message}", now, failure=failure)
        self._dead.pop(peer.name, None)  # it lives, and may be configured anew

    def _peer_gone(self, peer: Peer, links: list[RoomLink], now: float) -> None:
        self._dead.pop(peer.name, None)
        self._dead[peer.name] = now + 2 * self._patience_s
        while len(self._dead) > MAX_DEAD:
            self._dead.popitem(last=False)
        for node in self.nodes.values():
            if node.route is not None and any(a.instance_id == peer.name for a in node.route.ranks.values()):
                node.route = None
        super()._peer_gone(peer, links, now)

    def _answer_stranger(self, packet: msg.Packet) -> None:
        self._dead.pop(packet.sender, None)  # it lives, after all
        super()._answer_stranger(packet)

    # -- health of prefill instances -------------------------------------------------------------------------------

    def on_probe(self, addr: str, result: ProbeResult, now: float) -> list[Effect]:
        """A health probe of a bootstrap server ended."""
        node = self.nodes.get(addr)
        if node is None:
            return self._settle(now)
        if result.instances is not None:
            node.liveness.life(now)
            if node.route is not None and _replaced(node.route, dict(result.instances)):
                node.route = None
            return self._settle(now)
        node.error = result.error
        # A refused connection is news, silence is not: two refusals weigh as much as all the misses that silence needs.
        for _ in range((self.settings.dead_after + 1) // 2 if result.refused else 1):
            node.liveness.miss()
        if node.liveness.state is Liveness.DEAD:
            self._node_failed(node, now)
        return self._settle(now)

    def _node_failed(self, node: Node, now: float) -> None:
        """The instance's bootstrap server is dead: rooms that still depend on it fail. Sessions with its ranks go on:
        those have their own probes, and the server may be all that died.
        """
        text = (
            f"the bootstrap server at {node.addr} answered none of the last {node.liveness.misses} probes: {node.error}"
        )
        for room in list(node.waiting.values()):
            self._fail(
                room, FailureCode.PEER_LOST, text, Side.BOOTSTRAP, now=now, stage=FailureStage.BOOTSTRAP, retryable=True
            )
        self._forget_node(node)

    def _forget_idle_node(self, addr: str, now: float) -> None:
        node = self.nodes.get(addr)
        if node is None:
            return
        if node.wanted or node.resolving or any(peer.addr == addr for peer in self.peers.values()):
            self._timers.set(("node", addr), now + NODE_IDLE_S)
        else:
            self._forget_node(node)

    def _forget_node(self, node: Node) -> None:
        del self.nodes[node.addr]
        self._timers.cancel(("node", node.addr))
        self._timers.cancel(("resolve", node.addr))
        if node.watched:
            self._effects.append(Unwatch(node.addr))


def _replaced(route: Route, instances: dict[Ranks, str]) -> bool:
    return any(
        instances.get(ranks, address.instance_id) != address.instance_id for ranks, address in route.ranks.items()
    )
