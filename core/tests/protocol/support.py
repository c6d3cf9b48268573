"""A bench for machines: any number of prefill and decode ranks, a wire that carries or holds packets, and no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from core.tests.simulation.memory import SIZES
from core.tests.simulation.rules import Rules
from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import Direction, Role
from kv_core.contract.records import RoomEvent, RoomEventKind
from kv_core.protocol import effects as fx
from kv_core.protocol import messages as msg
from kv_core.protocol.chunks import ChunkResult, TransferKVChunk
from kv_core.protocol.decode import DecodeMachine
from kv_core.protocol.identity import Identity
from kv_core.protocol.machine import Machine
from kv_core.protocol.nodes import RankAddress, Route
from kv_core.protocol.prefill import PrefillMachine
from kv_core.protocol.rooms import Offer, Room

U64 = np.uint64
ADDR = "boot:8998"
SHORT = TransferConfig(
    bootstrap_timeout_s=10, waiting_timeout_s=8, transferring_timeout_s=6, draining_timeout_s=2, lease_s=4,
    probe_interval_s=1, suspect_after=2, dead_after=5,
)  # fmt: skip


def pages(*items: int) -> Any:
    """Item indices."""
    return np.array(items, np.uint64)


def identity(
    role: Role, name: str, *, can_fence: bool = False, direction: Direction = Direction.WRITE, **fields: str | int
) -> Identity:
    """Who a machine is; ``name`` is its instance id and its place."""
    told: dict[str, str | int] = {"model": "m", "page_size": 16, "direction": direction.value, **fields}
    endpoint = f"tcp://{name.partition('.')[0]}:7000"
    introduction = msg.Introduction(told, dict(SIZES), b"descriptor", endpoint, name, {"pid": 1})
    return Identity(role, "test", name, endpoint, introduction, can_fence, direction)


class Rank:
    """One machine on the bench, and what it has asked for."""

    def __init__(self, bench: Bench, machine: Machine) -> None:
        self.bench = bench
        self.machine: Any = machine
        self.name = machine.me.instance_id
        self.endpoint = machine.me.endpoint
        self.chunks: deque[TransferKVChunk] = deque()
        self.asked: list[fx.Effect] = []  # all effects but packets, chunks and news of rooms
        self.told: list[RoomEvent] = []
        self.sent: list[msg.Packet] = []

    def do(self, method: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """Call the machine, take its effects, return what else it returned."""
        result = method(*args, self.bench.now, **more)
        first, effects = result if isinstance(result, tuple) else (None, result)
        for effect in effects:
            self._take(effect)
        return first

    def _take(self, effect: fx.Effect) -> None:
        if isinstance(effect, fx.SendPacket):
            self.sent.append(effect.packet)
            self.bench.wire.append((effect.endpoint, effect.packet))
        elif isinstance(effect, fx.SubmitChunk):
            self.chunks.append(effect.chunk)
        elif isinstance(effect, fx.TellRoom):
            self.told.append(effect.event)
        else:
            self.asked.append(effect)

    def wants(self, kind: type[fx.Effect]) -> list[Any]:
        """Effects of this kind that have not been taken yet; takes them."""
        found = [effect for effect in self.asked if isinstance(effect, kind)]
        self.asked = [effect for effect in self.asked if not isinstance(effect, kind)]
        return found

    def ends(self, room: Room) -> list[RoomEvent]:
        """How often the end of a room was told."""
        return [e for e in self.told if e.kind is RoomEventKind.CONCLUDED and e.life == room.life]

    def messages(self, kind: type[msg.Message]) -> list[Any]:
        """Messages of this kind that have been sent, retransmissions included."""
        data = [packet for packet in self.sent if isinstance(packet, msg.Data)]
        return [message for packet in data for message in packet.messages if isinstance(message, kind)]

    # -- shorthands for engines and transports ---------------------------------------------------------------------

    def open(self, number: object = 5) -> Room:
        """Open a room."""
        return self.do(self.machine.open, number, ADDR)

    def init(self, room: Room, count: int = 2, aux: int | None = None) -> None:
        """``init`` of either side."""
        if self.machine.me.role is Role.PREFILL:
            self.do(self.machine.init, room, count, aux)
        else:
            self.do(self.machine.init, room, 0)

    def offer(self, room: Room, *items: int, aux: int | None = None, **states: Any) -> None:
        """Decode names its pages."""
        self.do(self.machine.offer, room, Offer(pages(*items), states, aux))

    def send(self, room: Room, *items: int, layers: range | None = None, **states: Any) -> None:
        """Prefill hands over a chunk."""
        self.do(self.machine.send, room, pages(*items), states, layers, None)

    def abort(self, room: Room, why: str = "enough") -> None:
        """The engine aborts."""
        self.do(self.machine.abort, room, why)

    def clear(self, room: Room) -> None:
        """The engine clears."""
        self.do(self.machine.clear, room)

    def claim(self) -> TransferKVChunk | None:
        """Take the next chunk from the queue; None if it may not be posted."""
        chunk = self.chunks.popleft()
        return chunk if self.do(self.machine.claim_chunk, chunk) else None

    def show(self, chunk: TransferKVChunk | None = None, digest: Any = None, rows: tuple[bytes, ...] = ()) -> None:
        """Pull: the next chunk's source is complete, decode may read it."""
        chunk = chunk or self.claim()
        assert chunk is not None, "the machine did not let the chunk go"
        self.do(self.machine.chunk_readable, chunk, digest, rows)

    def land(self, chunk: TransferKVChunk | None = None, **result: Any) -> None:
        """The next chunk is posted and lands."""
        chunk = chunk or self.claim()
        assert chunk is not None, "the machine did not let the chunk go"
        now = self.bench.now
        self.do(self.machine.chunk_landed, chunk, ChunkResult(100, now - 0.1, now, **result))


class Bench:
    """Machines and the wire between them."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.wire: deque[tuple[str, msg.Packet]] = deque()
        self.ranks: dict[str, Rank] = {}
        self.dead: set[str] = set()
        self.route: Any = None
        self.sources: dict[tuple[int, int, int, int], RankAddress] = {}
        self.codec = msg.Codec(1 << 25)

    def prefill(self, name: str = "p.1", settings: TransferConfig = SHORT, **more: Any) -> Rank:
        """A prefill rank: one of those that every room needs from now on."""
        rank = self._add(PrefillMachine(identity(Role.PREFILL, name, **more), settings, Rules()))
        self.sources[len(self.sources), 0, 0, 0] = RankAddress(rank.endpoint, name)
        self.route = Route((len(self.sources), 1, 1, 1), dict(self.sources))
        return rank

    def decode(self, name: str = "d.1", settings: TransferConfig = SHORT, destinations: int = 1, **more: Any) -> Rank:
        """A decode rank."""
        return self._add(DecodeMachine(identity(Role.DECODE, name, **more), settings, Rules(destinations)))

    def _add(self, machine: Machine) -> Rank:
        rank = self.ranks[machine.me.endpoint] = Rank(self, machine)
        return rank

    def pump(self, limit: int = 10_000) -> None:
        """Carry packets, and answer bootstrap requests, until all is quiet."""
        for _ in range(limit):
            resolves = [(rank, each) for rank in self.ranks.values() for each in rank.wants(fx.Resolve)]
            for rank, resolve in resolves:
                rank.do(rank.machine.on_route, resolve.addr, self.route)
            if not self.wire and not resolves:
                return
            if self.wire:
                self.deliver(*self.wire.popleft())
        raise AssertionError("the machines do not come to rest")

    def deliver(self, endpoint: str, packet: msg.Packet) -> None:
        """Carry one packet, as bytes."""
        rank = self.ranks.get(endpoint)
        if rank is not None and rank.name not in self.dead:
            rank.do(rank.machine.on_packet, self.codec.decode(self.codec.encode(packet)))

    def pass_time(self, seconds: float, step: float = 0.25) -> None:
        """Let time pass, with ticks and packets."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step)
            for rank in list(self.ranks.values()):
                if rank.name not in self.dead:
                    rank.do(rank.machine.tick)
            self.pump()

    def pair(self, **more: Any) -> tuple[Rank, Rank]:
        """A prefill and a decode rank that have shaken hands."""
        prefill, decode = self.prefill(**more), self.decode(**more)
        self.meet(decode)
        return prefill, decode

    def meet(self, decode: Rank) -> None:
        """Let a decode rank shake hands with the prefill rank of the route."""
        room = decode.open(2**62)
        decode.init(room)
        self.pump()
        decode.clear(room)
        self.pump()
        for rank in self.ranks.values():  # what an early abort leaves behind
            if rank.machine.me.role is Role.PREFILL and not rank.machine.closed:
                rank.clear(rank.open(2**62))

    def bound(self, prefill: Rank, decode: Rank, number: int = 5, *items: int) -> tuple[Room, Room]:
        """A room that both sides have opened, and in which bytes may move."""
        items = items or (7, 8)
        source, target = prefill.open(number), decode.open(number)
        prefill.init(source, len(items))
        decode.init(target)
        decode.offer(target, *items)
        self.pump()
        return source, target


def at_rest(*ranks: Rank, but: str = "") -> None:
    """Assert that the machines hold nothing but their sessions (and what ``but`` names)."""
    stays = {"peers", "nodes", "dropped", "rooms_by_phase", but}
    for rank in ranks:
        rest = {key: value for key, value in rank.machine.snapshot().items() if value and key not in stays}
        assert not rest, f"{rank.name} still has {rest}"
