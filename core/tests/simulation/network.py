"""Packets between processes: lost, late, doubled, out of order; connections that break and are refused; partitions."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from kv_core.protocol.effects import Disconnect, SendPacket
from kv_core.protocol.messages import Data, Hello, Packet, Welcome

if TYPE_CHECKING:
    from core.tests.simulation.processes import Process, Slot
    from core.tests.simulation.world import World

TRAVEL_S = 0.003


class Network:
    """Carries packets between slots; a slot's endpoint stays, whichever process lives there."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._net = world.scenario.net
        self._clean = self._net.name == "clean"
        self._connections: set[tuple[str, str]] = set()  # (instance id of who connected, endpoint)
        self._cuts: set[tuple[str, str]] = set()  # (from, to)
        self._held: list[tuple[Slot, Slot, Packet | bytes]] = []
        self._past: deque[tuple[Slot, Slot, Packet | bytes]] = deque(maxlen=64)
        self._greetings: deque[tuple[Slot, Slot, Packet | bytes]] = deque(maxlen=16)
        self.data_packets = 0

    def send(self, source: Process, effect: SendPacket) -> None:
        """``source`` sends a packet."""
        target = self._world.endpoints.get(effect.endpoint)
        if target is None:
            return
        key = (source.name, effect.endpoint)
        if key not in self._connections:
            if target.process is None or not target.process.alive:
                if not target.silent:
                    self._world.clock.after(self._rng.uniform(0.001, 0.02), self._refuse, source, effect.endpoint)
                return
            if not self._cut(source.slot, target):
                self._connections.add(key)
        packet: Packet | bytes = effect.packet
        if self._world.codec is not None:
            packet = self._world.codec.encode(effect.packet)
        past = self._greetings if isinstance(effect.packet, Hello | Welcome) else self._past
        past.append((source.slot, target, packet))
        self.data_packets += isinstance(effect.packet, Data)
        if self._cut(source.slot, target):
            if self._rng.random() < 0.3:  # what TCP would deliver once the way is free
                self._held.append((source.slot, target, packet))
            return
        self._carry(source.slot, target, packet)

    def _carry(self, source: Slot, target: Slot, packet: Packet | bytes) -> None:
        rng, net, after = self._rng, self._net, self._world.clock.after
        if self._clean:
            after(TRAVEL_S * rng.random(), self._deliver, source, target, packet)
            return
        if rng.random() < net.loss:
            return
        for _ in range(2 if rng.random() < net.double else 1):
            delay = net.spike if rng.random() < net.slow else 2 * TRAVEL_S
            after(delay * rng.random(), self._deliver, source, target, packet)

    def _deliver(self, source: Slot, target: Slot, packet: Packet | bytes) -> None:
        process = target.process
        if process is not None and process.alive:
            if isinstance(packet, bytes):
                assert self._world.codec is not None
                packet = self._world.codec.decode(packet)
            process.call("packet", process.machine.on_packet, packet)

    # -- connections -----------------------------------------------------------------------------------------------

    def disconnect(self, source: Process, effect: Disconnect) -> None:
        """``source`` drops its connection."""
        self._connections.discard((source.name, effect.endpoint))

    def forget(self, process: Process) -> None:
        """``process`` has ended: who was connected to it learns of it, unless its whole host is silent."""
        slot = process.slot
        self._connections = {key for key in self._connections if key[0] != process.name}
        for name, endpoint in sorted(key for key in self._connections if key[1] == slot.endpoint):
            if slot.silent:
                continue
            source = self._world.processes[name]
            self._world.clock.after(self._rng.uniform(0.001, 0.1), self._lose, source, endpoint)

    def flap(self, source: Process, endpoint: str, times: int) -> None:
        """The connection breaks and comes back, a few times."""
        for i in range(times):
            self._world.clock.after(i * 0.0005, self._lose, source, endpoint)

    def lose_all(self, process: Process) -> None:
        """To this process it seems that nobody listens anywhere, for a moment."""
        for peer in list(process.machine.peers.values()):
            self._world.clock.after(0.01, process.call, "refused", process.machine.on_connection_refused, peer.endpoint)

    def _lose(self, source: Process, endpoint: str) -> None:
        if source.alive and (source.name, endpoint) in self._connections:
            source.call("connection lost", source.machine.on_connection_lost, endpoint)
            if not self._listening(endpoint):
                self._connections.discard((source.name, endpoint))
                self._world.clock.after(self._rng.uniform(0.001, 0.2), self._refuse, source, endpoint)

    def _refuse(self, source: Process, endpoint: str) -> None:
        if not source.alive or self._world.endpoints[endpoint].silent:
            return
        if not self._listening(endpoint) or self._rng.random() < 0.2:  # the news may be old
            source.call("connection refused", source.machine.on_connection_refused, endpoint)

    def _listening(self, endpoint: str) -> bool:
        process = self._world.endpoints[endpoint].process
        return process is not None and process.alive

    # -- partitions and replays ------------------------------------------------------------------------------------

    def cut(self, a: Slot, b: Slot, *, one_way: bool = False) -> None:
        """No packet passes from ``a`` to ``b`` (and back) from now on."""
        self._cuts.add((a.name, b.name))
        if not one_way:
            self._cuts.add((b.name, a.name))

    def heal(self, a: Slot, b: Slot) -> None:
        """The way is free again; some of what was sent meanwhile arrives late."""
        self._cuts -= {(a.name, b.name), (b.name, a.name)}
        held, self._held = self._held, []
        for source, target, packet in held:
            if self._cut(source, target):
                self._held.append((source, target, packet))
            else:
                self._carry(source, target, packet)

    def calm(self) -> None:
        """From now on every packet arrives, soon."""
        self._clean = True

    def heal_all(self) -> None:
        """No more cuts."""
        for a, b in sorted(self._cuts):
            self.heal(self._world.slots[a], self._world.slots[b])

    def is_cut(self, a: Slot, b: Slot) -> bool:
        """Whether neither packets nor bytes pass from ``a`` to ``b``."""
        return self._cut(a, b)

    def _cut(self, a: Slot, b: Slot) -> bool:
        return bool(self._cuts) and (a.name, b.name) in self._cuts

    def replay(self, slot: Slot, count: int) -> None:
        """Packets of the past arrive at this slot once more."""
        past = [entry for entry in (*self._greetings, *self._past) if entry[1] is slot]
        for entry in self._rng.sample(past, min(count, len(past))):
            self._world.clock.after(self._rng.uniform(0, 0.5), self._deliver, *entry)
