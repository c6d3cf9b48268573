"""Processes and the places where they live. A process has a machine, performs its effects, can be stopped and killed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core.tests.simulation.dataplane import DataPlane
from core.tests.simulation.handles import Handle
from core.tests.simulation.memory import SIZES, Memory
from core.tests.simulation.rules import Rules
from kv_core.contract.enums import Role
from kv_core.protocol import effects as fx
from kv_core.protocol.decode import DecodeMachine
from kv_core.protocol.identity import Identity
from kv_core.protocol.machine import Machine
from kv_core.protocol.messages import Introduction
from kv_core.protocol.prefill import PrefillMachine
from kv_core.protocol.quiescence import Quiescence

if TYPE_CHECKING:
    from core.tests.simulation.bootstrap import Bootstrap
    from core.tests.simulation.world import World

LATE_S = (0.001, 0.001, 0.001, 0.001, 0.3, 1.0)
"""How late a process may be with its ticks: then much comes due at once."""


class Slot:
    """A place where a process lives, dies and is started again: its address stays."""

    def __init__(self, world: World, role: Role, index: int, rank: int) -> None:
        self.world = world
        self.role = role
        self.index = index
        self.rank = rank  # prefill: tensor-parallel rank within its instance
        self.name = f"{role.value[0].upper()}{index}"
        self.endpoint = f"tcp://{self.name.lower()}:7000"
        self.silent = False  # the host swallows packets: nobody learns that a process has ended
        self.touched = False  # something happened to it that may fail rooms
        self.unreachable_until = 0.0  # the transport can't add peers until then
        self.lives = 0
        self.process: Process | None = None
        self.bootstrap: Bootstrap | None = None

    def start(self) -> Process:
        """Start a process here."""
        self.lives += 1
        self.silent = False
        self.process = Process(self.world, self, f"{self.name}.{self.lives}")
        self.world.processes[self.process.name] = self.process
        if self.bootstrap is not None:
            self.world.clock.after(self.world.rng.choice((0.0, self.world.rng.uniform(0, 1))), self.bootstrap.register, self.process)  # fmt: skip
        return self.process


class Process:
    """One life of a process."""

    def __init__(self, world: World, slot: Slot, name: str) -> None:
        self.world = world
        self.slot = slot
        self.name = name
        self.settings = world.scenario.settings
        self.memory = Memory(world.rng)
        self.alive = True
        self.died_at = 0.0
        self.paused = False
        self.stalled_at: float | None = None  # since when the transfer thread has stood still
        self.closing = False
        self.handles: list[Handle] = []  # those that may still change
        self.fenced: dict[str, int] = {}  # instance: generation up to which it can write, or read, nothing here
        self._backlog: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = []
        self.late_s = world.rng.choice(LATE_S)
        if self.late_s > LATE_S[0] and world.scenario.net.name != "clean":
            slot.touched = True  # late ticks and lost packets together may well be too late for a lease
        self._tick_at: float | None = None
        self.machine: Machine = self._build()
        self.data = DataPlane(world, self)
        self._perform: dict[type, Callable[[Any], None]] = {
            fx.SendPacket: lambda e: world.network.send(self, e),
            fx.Disconnect: lambda e: world.network.disconnect(self, e),
            fx.Resolve: lambda e: world.bootstraps[e.addr].resolve(self),
            fx.Watch: lambda e: world.bootstraps[e.addr].watch(self),
            fx.Unwatch: lambda e: world.bootstraps[e.addr].unwatch(self),
            fx.AddPeer: self._add_peer, fx.RemovePeer: lambda e: None,
            fx.FencePeer: self._fence, fx.ProveDeath: self._prove_death,
            fx.SubmitChunk: self.data.submit, fx.VerifyDigests: self.data.verify,
            fx.TellRoom: lambda e: world.referee.on_room(self, e.event),
            fx.TellPeer: lambda e: world.referee.on_peer(self, e.event),
        }  # fmt: skip

    def _build(self) -> Machine:
        scenario, slot = self.world.scenario, self.slot
        page_size = 16
        if slot.role is Role.DECODE and scenario.stranger == slot.index:
            page_size = 64
        direction = scenario.direction
        fields: dict[str, str | int] = {
            "model": "m", "page_size": page_size, "tp_rank": slot.rank, "direction": direction.value,
        }  # fmt: skip
        introduction = Introduction(fields, dict(SIZES), b"descriptor", slot.endpoint, slot.name, {"pid": slot.lives})
        me = Identity(slot.role, "sim", self.name, slot.endpoint, introduction, scenario.can_fence, direction)
        rules = Rules(scenario.destinations)
        kind = self.world.machines[slot.role]
        return kind(me, self.settings, rules)

    @property
    def prefill(self) -> PrefillMachine:
        """The machine, if this is a prefill process."""
        assert isinstance(self.machine, PrefillMachine)
        return self.machine

    @property
    def decode(self) -> DecodeMachine:
        """The machine, if this is a decode process."""
        assert isinstance(self.machine, DecodeMachine)
        return self.machine

    @property
    def ledger(self) -> Quiescence:
        """The machine, as what both sides have in common."""
        assert isinstance(self.machine, Quiescence)
        return self.machine

    @property
    def rng(self) -> random.Random:
        """The schedule's random numbers."""
        return self.world.rng

    # -- steps -----------------------------------------------------------------------------------------------------

    def call(self, label: str, method: Callable[..., list[fx.Effect]], *args: Any) -> None:
        """One step of the machine; put off while the process is stopped."""
        if not self.alive:
            return
        if self.paused:
            self._backlog.append((label, method, args))
            return
        if self.stalled_at is not None:
            self.machine.stalled_s = self.world.clock.now - self.stalled_at
        effects = method(*args, self.world.clock.now)
        self.finish(label, args, effects)

    def finish(self, label: str, args: tuple[Any, ...], effects: list[fx.Effect]) -> None:
        """Perform a step's effects, see to the next tick, and let the referee look."""
        if self.world.trace is not None:
            self.world.note(self.name, label, args, effects)
        for effect in effects:
            self._perform[type(effect)](effect)
        self._arm()
        self.world.referee.after(self)

    def _arm(self) -> None:
        when = self.machine.next_deadline()
        if when is not None and (self._tick_at is None or when < self._tick_at):
            self._tick_at = when
            self.world.clock.at(when + self.late_s, self._tick, when)

    def _tick(self, when: float) -> None:
        if self._tick_at != when or not self.alive:
            return
        self._tick_at = None
        if not self.paused:
            self.call("tick", self.machine.tick)

    # -- what happens to processes ---------------------------------------------------------------------------------

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT: what has come meanwhile is there at once; timers may come before or after it."""
        if not self.alive or not self.paused:
            return
        self.paused = False
        self.world.referee.resumed(self)
        backlog, self._backlog = self._backlog, []
        late = self.rng.random() < 0.5
        if not late:
            self.call("tick", self.machine.tick)
        for label, method, args in backlog:
            self.call(label, method, *args)
        self.call("tick", self.machine.tick)
        self.data.thaw()

    def stall(self, duration: float) -> None:
        """The transfer thread stands still; everything else goes on."""
        if self.stalled_at is None:
            self.stalled_at = self.world.clock.now
            self.world.clock.after(duration, self.unstall)

    def unstall(self) -> None:
        """The transfer thread goes on."""
        if self.stalled_at is not None:
            self.stalled_at = None
            self.machine.stalled_s = 0.0
            self.data.thaw()

    def kill(self) -> None:
        """SIGKILL, or the end after ``close``. What the network card has accepted may still land for a moment."""
        if not self.alive:
            return
        self.alive = False
        self.died_at = self.world.clock.now
        self.world.note(self.name, "dies", (), [])
        self.data.die()
        self.world.network.forget(self)
        self.world.data_of_the_dead(self)
        for handle in self.handles:
            self.world.referee.bury(handle)
        self.handles = []

    def close(self) -> None:
        """Close the manager: fail the rooms, give writes a moment to drain, say farewell, exit."""
        if self.alive and not self.paused and not self.closing:
            self.closing = True
            self.call("close", self.machine.close)
            self.world.clock.after(self.rng.uniform(0.01, 1.5), self._exit)

    def _exit(self) -> None:
        if not self.alive:
            return
        if not self.paused:
            quiescent = self.data.quiescent
            self.finish("farewell", (quiescent,), self.machine.farewell(quiescent))
        self.kill()

    def _add_peer(self, effect: fx.AddPeer) -> None:
        if self.world.clock.now < self.slot.unreachable_until:
            when = self.world.clock.now + 0.3 * self.rng.random()
            self.world.clock.at(
                when, self.call, "peer failed", self.machine.on_peer_failed, effect.peer, "the fabric has no way there"
            )
        else:
            when = self.world.clock.now + self.rng.choice((0.001, 0.3 * self.rng.random()))
            self.world.clock.at(when, self.call, "peer met", self.machine.on_peer_met, effect.peer)

    # -- proofs ----------------------------------------------------------------------------------------------------

    def _fence(self, effect: fx.FencePeer) -> None:
        self.world.clock.after(self.rng.choice((0.001, self.rng.uniform(0, 2))), self._fenced, effect.peer)

    def _fenced(self, key: Any) -> None:
        if not self.alive:
            return
        if self.world.scenario.fence_works:
            self.fenced[key.name] = max(key.generation, self.fenced.get(key.name, 0))
            self.call("fenced", self.ledger.on_fenced, key)
        else:
            self.call("fence failed", self.ledger.on_fence_failed, key)

    def _prove_death(self, effect: fx.ProveDeath) -> None:
        if self.world.scenario.death_provable:
            self.world.clock.after(0.01, self._await_death, effect.peer.name)

    def _await_death(self, name: str) -> None:
        if not self.alive:
            return
        process = self.world.processes[name]
        now = self.world.clock.now
        if process.alive:
            self.world.clock.after(0.5, self._await_death, name)
        elif now > process.died_at + self.world.GRACE_S:
            self.call("proven dead", self.ledger.on_proven_dead, name)
        else:
            self.world.clock.after(self.world.GRACE_S * 1.01, self._await_death, name)
