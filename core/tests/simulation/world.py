"""One schedule: builds the world that a seed stands for, lets it run, heals it, and looks at it at rest."""

from __future__ import annotations

import random
import re
import traceback
from dataclasses import dataclass, replace
from typing import Any

from core.tests.simulation.bootstrap import Bootstrap
from core.tests.simulation.clock import Clock, no_real_clock
from core.tests.simulation.dataplane import Motion
from core.tests.simulation.engine import Engine
from core.tests.simulation.handles import Handle
from core.tests.simulation.invariants import InvariantBroken, Referee
from core.tests.simulation.network import Network
from core.tests.simulation.processes import Process, Slot
from core.tests.simulation.rest import Inspector
from core.tests.simulation.scenario import BOUND_S, Fault, Request, draw
from kv_core.contract.enums import Direction, Role
from kv_core.protocol.decode import DecodeMachine
from kv_core.protocol.effects import Effect
from kv_core.protocol.machine import Machine
from kv_core.protocol.messages import Codec
from kv_core.protocol.prefill import PrefillMachine
from kv_core.protocol.rooms import Room

MAX_EVENTS = 60_000
MAX_TRAFFIC = 8
"""Data packets in the last seconds of rest: nobody has anything to say then."""


def direction_of(seed: int) -> Direction:
    """Odd seeds pull."""
    return Direction.READ if seed % 2 else Direction.WRITE


@dataclass(frozen=True)
class Outcome:
    """How a schedule went."""

    seed: int
    broken: str = ""  # the invariant
    text: str = ""
    profile: str = ""
    events: int = 0
    rooms: int = 0
    succeeded: int = 0
    trace: tuple[str, ...] = ()


class World:
    """All that takes part in one schedule."""

    GRACE_S = 0.5
    """How long after a process's death its network card may still write."""

    def __init__(self, seed: int, machines: dict[Role, type[Machine]] | None = None, *, traced: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.machines: dict[Role, Any] = machines or {Role.PREFILL: PrefillMachine, Role.DECODE: DecodeMachine}
        self.trace: list[str] | None = [] if traced else None
        self.clock = Clock()
        self.scenario = draw(self.rng)
        self.scenario.direction = direction_of(seed)
        if seed % 3 == 0:  # the transport's word is waited for before pages are named
            self.scenario.settings = replace(self.scenario.settings, require_transport="sim")
        self.codec = Codec(1 << 20) if self.scenario.codec else None
        self.processes: dict[str, Process] = {}
        self.handle_of: dict[tuple[str, int], Handle] = {}
        self.referee = Referee(self)
        self.network = Network(self)
        self.engine = Engine(self)
        self._inspector = Inspector(self)
        self.over = False  # faults and engines have had their time
        self._faults_left = 0
        self.slots: dict[str, Slot] = {}
        scenario = self.scenario
        prefills = [Slot(self, Role.PREFILL, i, i % scenario.ranks) for i in range(scenario.instances * scenario.ranks)]
        decodes = [Slot(self, Role.DECODE, i, 0) for i in range(scenario.groups * scenario.destinations)]
        self._all = prefills + decodes
        self.slots = {slot.name: slot for slot in self._all}
        self.endpoints = {slot.endpoint: slot for slot in self._all}
        boots = [
            Bootstrap(self, i, prefills[i * scenario.ranks : (i + 1) * scenario.ranks]) for i in range(scenario.instances)
        ]  # fmt: skip
        self.bootstraps = {boot.addr: boot for boot in boots}

    # -- small services --------------------------------------------------------------------------------------------

    def addr_of(self, request: Request) -> str:
        """The request's bootstrap address."""
        return f"boot{request.instance}:8998"

    def watch(self, handle: Handle) -> None:
        """The referee looks at this room from now on."""
        handle.process.handles.append(handle)
        self.handle_of[handle.process.name, handle.room.life] = handle

    def living(self) -> list[Process]:
        """Processes that are alive."""
        return [slot.process for slot in self._all if slot.process is not None and slot.process.alive]

    def unstick(self, motion: Motion) -> bool:
        """Whether a hanging transfer comes free now: most do in the end."""
        return self.over and hash(motion.handle.uid) % 4 != 0

    def data_of_the_dead(self, process: Process) -> None:
        """A process has died. Transfers to it that hang see that by themselves."""

    def note(self, who: str, what: str, args: tuple[Any, ...], effects: list[Effect]) -> None:
        """A line of the trace."""
        if self.trace is not None:
            text = ", ".join(_short(arg) for arg in args)
            self.trace.append(f"{self.clock.now:10.4f}  {who:6} {what}({text})")
            self.trace.extend(f"{'':12}       -> {_short(effect)}" for effect in effects)

    # -- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises ``InvariantBroken``."""
        clock, scenario = self.clock, self.scenario
        begin = clock.now
        for slot in self._all:
            slot.touched = scenario.net.name == "heavy"
            slot.start()
        for request in scenario.requests:
            self.engine.schedule(request, base=begin)
        for fault in scenario.faults:
            self._faults_left += 1
            clock.at(begin + fault.when, self._strike, fault)
        stop = begin + 9.0 + 4.0 * self.rng.random()
        while clock.now < stop and not (self._idle() and self.engine.pending == 0 and self._faults_left == 0):
            self._pass(0.5)
        self._heal()
        limit = clock.now + BOUND_S
        while not all(handle.final for process in self.living() for handle in process.handles):
            if clock.now > limit:
                late = [h for p in self.living() for h in p.handles if h.final is None]
                self.referee.broken("I5 time", f"{late} have not ended {BOUND_S} s after everything else")
            self._pass(0.5)
        self._rest()

    def _pass(self, seconds: float) -> None:
        self.clock.run(self.clock.now + seconds)
        if self.clock.events > MAX_EVENTS:
            self.referee.broken("I5 time", f"{self.clock.events} events: somebody does not come to rest")

    def _idle(self) -> bool:
        return all(not process.handles for process in self.living())

    def _rest(self) -> None:
        self.network.calm()
        for handle in self.engine.handles:
            if handle.process.alive:
                self.engine.clear(handle)
        # Long enough for the slowest to find out that a peer is dead.
        late = max((process.late_s for process in self.living()), default=0.0)
        self._pass(40.0 if self.scenario.rests_long else 9.0 + 7 * late)
        self._inspector.leaks()
        if self.scenario.faults or self.scenario.net.name != "clean":
            fresh = self.engine.freshly()
            self._pass(3.0)
            self._inspector.succeeded(fresh)
            self.engine.stopped = True
            self._pass(0.5)
        before = self.network.data_packets
        self._pass(1.5)
        if self.network.data_packets - before > MAX_TRAFFIC:
            self.referee.broken("I4 leak", f"{self.network.data_packets - before} data packets although nobody has anything to say")  # fmt: skip
        self.referee.last_words()
        self._inspector.leaks()
        self._inspector.outcomes()

    # -- faults ----------------------------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        self._faults_left -= 1
        slot = None if fault.kind in BOOT_FAULTS else self._all[fault.target]
        if self.over:
            return
        self.note("world", fault.kind, (fault,), [])
        if slot is None:
            boot = list(self.bootstraps.values())[fault.target]
            for each in self._all[fault.target * self.scenario.ranks : (fault.target + 1) * self.scenario.ranks]:
                each.touched = True
            boot.break_down(fault.kind, fault.duration)
            return
        process = slot.process
        if process is None or not process.alive:
            return
        kind = fault.kind.partition("_")[0]
        getattr(self, f"_{kind}")(slot, process, fault)

    def _kill(self, slot: Slot, process: Process, fault: Fault) -> None:
        slot.touched = True
        slot.silent = self.rng.random() < 0.2
        process.kill()
        self._revive_later(slot, fault.duration)

    def _close(self, slot: Slot, process: Process, fault: Fault) -> None:
        slot.touched = True
        process.close()
        self._revive_later(slot, 2.0 + fault.duration)

    def _revive_later(self, slot: Slot, delay: float) -> None:
        self._faults_left += 1
        self.clock.after(delay, self._revive, slot)

    def _revive(self, slot: Slot) -> None:
        self._faults_left -= 1
        if slot.process is not None and not slot.process.alive and not self.over:
            self.note(slot.name, "starts again", (), [])
            slot.start()

    def _pause(self, slot: Slot, process: Process, fault: Fault) -> None:
        slot.touched = True
        self.clock.after(fault.duration, process.resume)
        process.pause()

    def _partition(self, slot: Slot, process: Process, fault: Fault) -> None:
        other = self._all[fault.other]
        slot.touched = other.touched = True
        self.network.cut(slot, other)
        self.clock.after(fault.duration, self.network.heal, slot, other)

    def _deaf(self, slot: Slot, process: Process, fault: Fault) -> None:
        other = self._all[fault.other]
        slot.touched = other.touched = True
        self.network.cut(other, slot, one_way=True)
        self.clock.after(fault.duration, self.network.heal, slot, other)

    def _flap(self, slot: Slot, process: Process, fault: Fault) -> None:
        self.network.flap(process, self._all[fault.other].endpoint, self.rng.choice((1, 3, 12)))

    def _stall(self, slot: Slot, process: Process, fault: Fault) -> None:
        slot.touched = True
        process.stall(fault.duration)

    def _unreachable(self, slot: Slot, process: Process, fault: Fault) -> None:
        slot.touched = True
        slot.unreachable_until = self.clock.now + fault.duration
        if self.rng.random() < 0.7:  # sessions that stand do not ask again: make new ones
            self.network.lose_all(process)

    def _giveup(self, slot: Slot, process: Process, fault: Fault) -> None:
        slot.touched = True
        for peer in process.machine.peers:
            self.processes[peer].slot.touched = True
        self.network.lose_all(process)
        self.clock.after(0.3 * self.rng.random(), self.network.replay, slot, 12)

    def _storm(self, slot: Slot, process: Process, fault: Fault) -> None:
        self.network.replay(slot, self.rng.randrange(1, 12))

    def _heal(self) -> None:
        """Engines and faults have had their time: from here on everything has to end by itself."""
        self.over = True
        self.note("world", "heals", (), [])
        for slot in self._all:
            slot.unreachable_until = 0.0
            if slot.process is not None:
                slot.process.resume()
                slot.process.unstall()
        self.network.heal_all()
        for boot in self.bootstraps.values():
            boot.mend()
        self.engine.give_up()


ADDRESS = re.compile(r" object at 0x[0-9a-f]+")
BOOT_FAULTS = ("absent", "black", "slow", "foreign", "stale", "restart")


def _short(value: object) -> str:
    if isinstance(value, Room):
        return f"<room {value.number} life {value.life} {value.phase.value}>"
    text = ADDRESS.sub("", repr(value))
    return text if len(text) < 260 else f"{text[:250]}... ({len(text)})"


def run_seed(seed: int, machines: dict[Role, type[Machine]] | None = None, *, traced: bool = False) -> Outcome:
    """Run one schedule; what breaks is in the outcome."""
    world = World(seed, machines, traced=traced)
    broken = text = ""
    with no_real_clock():
        try:
            world.run()
        except InvariantBroken as error:
            broken, text = error.invariant, str(error)
        except Exception as error:  # noqa: BLE001 - a machine that raises has broken its word, whatever it raises
            where = traceback.extract_tb(error.__traceback__)[-1]
            broken = "I0 crash"
            text = f"I0 crash: {type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})"
    ended = [handle.final for handle in world.engine.handles if handle.final is not None]
    return Outcome(
        seed, broken, text, world.scenario.profile, world.clock.events, len(ended), sum(final[1] is None for final in ended),
        tuple(world.trace or ()),
    )  # fmt: skip
