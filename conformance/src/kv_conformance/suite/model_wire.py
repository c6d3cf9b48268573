"""KV-MODEL-2's owner thread: does with a transport what core does, in an order that is drawn, and tells the book of copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from kv_conformance.nodes.env import Env
from kv_conformance.nodes.memory import POISON, U8, Shape
from kv_conformance.nodes.wire import Road, WireNode
from kv_conformance.nodes.wire_server import Introduction
from kv_conformance.suite.in_node_wire_model import Order, cancel_one, step
from kv_conformance.suite.model_copies import Copies, Copy
from kv_conformance.suite.model_ledger import Ledger
from kv_conformance.suite.model_life import Broken
from kv_conformance.suite.model_run import Budget, Patience, Tale, explore, guarded, with_tale
from kv_core import Capability, Role, TransferState

SHAPE = Shape(kv=(3, 24, 80), gap=64)
HOT = 6
"""Items from which is moved again and again."""
STUCK = 8
"""When so many items wait for a proof that does not come, the target's process is replaced, which is one."""
KINDS = {
    "submit": 22, "submit_many": 10, "submit_removed": 2, "progress": 10, "cancel": 6, "release": 4, "drive": 5, "meet": 1,
    "remove": 2, "freeze": 2, "thaw": 3,
}  # fmt: skip
"""How often each kind of act is drawn, in relation to the others."""


class Act(NamedTuple):
    """One step: what to do; ``luck`` decides the rest."""

    kind: str
    luck: int


class WireWorld:
    """Two transports, from one history to the next. ``crash_every``: in every so many-th history the target is killed."""

    def __init__(self, env: Env, crash_every: int) -> None:
        self.env = env
        self.tale = Tale(f"{__name__}.replay")
        self._crash_every = crash_every
        self._crash_at = -1
        self._salt = 0
        self._writer, self._target = env.ends(SHAPE)
        self._source, ledger = Ledger(self._writer.memory), Ledger(self._target.memory)
        self.copies = Copies(ledger)
        self._free = list(range(SHAPE.kv[1]))
        self._cancels = env.declares(Capability.CANCEL)
        self._introduction: Introduction = self._target.introduce()
        self._generation = 0
        self._road: Road | None = None
        self._removed: Road | None = None
        self._frozen = False
        self._unwell = ""

    # -- a history -------------------------------------------------------------------------------------------------

    def begin(self, salt: int, crash_at: int) -> None:
        """A new history; nothing is outstanding."""
        self.tale.begin()
        self._salt = salt
        self._crash_at = crash_at if self.tale.number % self._crash_every == 0 else -1
        self.tale.acts.append((salt, self._crash_at))

    def act(self, act: Act) -> None:
        """One step, and a look at both memories."""
        self.tale.acts.append(act)
        luck = Random(f"{act.luck} {len(self.tale.acts)} {self._salt}")  # noqa: S311 - it shall repeat
        if len(self.tale.acts) - 2 == self._crash_at:
            self._crash(luck)
        else:
            perform: Callable[[Random], None] = getattr(self, f"_{act.kind}")
            perform(luck)

    def finish(self) -> None:
        """Drive everything to its end and give it back."""
        self._drive(Random(0))  # noqa: S311 - it shall repeat
        self._release_all()
        if len(self.copies.unquiet) >= STUCK:
            self._crash(Random(0))  # noqa: S311 - it shall repeat

    # -- turns -----------------------------------------------------------------------------------------------------

    def _turn(self, orders: Sequence[Order] = (), asked: Sequence[Copy] | None = None) -> list[Any]:
        """Make these calls and one ``progress``, then look at both memories; what the calls returned."""
        asked = self.copies.unquiet if asked is None else asked
        failed = {copy.number for copy in asked if copy.told is TransferState.FAILED}
        answers, records = self._writer.call(step, orders, [copy.number for copy in asked])
        for record in records:
            failed.discard(record.number)
            quiet = self.copies.tell(
                record.number, record.state, record.error, quiescent=record.quiescent, refused=record.refused
            )
            if record.state is TransferState.DONE:
                self.env.reached("a transfer was done")
            if quiet is not None:
                self._reclaim(quiet)
        if failed:
            raise Broken(
                f"transfer {min(failed)} has failed and is not quiescent, and progress() does not mention it any more"
            )
        self._look()
        found: list[Any] = answers
        return found

    def _look(self) -> None:
        self.copies.check()
        problem = self._source.wrong()
        if problem:
            raise Broken(f"the writer's memory: {problem}")

    def _reclaim(self, copy: Copy) -> None:
        """Its items may be used again, and are at once: on both sides they get other bytes."""
        for item in copy.items:
            self.copies.target.poison(item)
        self._free += copy.there
        busy = {item for other in self.copies.unquiet for item in other.here}
        for number in set(copy.here) - busy:
            self._source.write(("kv", number), self.env.random.integers(1, POISON, self._source.nbytes("kv"), np.uint8))

    # -- acts: transfers -------------------------------------------------------------------------------------------

    def _submit(self, luck: Random) -> None:
        if self._road is None:
            self._meet(luck)
        elif self._free:
            self._post(self._road, luck)

    def _submit_many(self, luck: Random) -> None:
        """Several without a look in between."""
        for _ in range(luck.randint(2, 4)):
            self._submit(luck)

    def _submit_removed(self, luck: Random) -> None:
        """To a peer that was removed: it must be refused."""
        if self._removed is not None and self._free:
            self._post(self._removed, luck, removed=True)
        self._turn()

    def _post(self, road: Road, luck: Random, *, removed: bool = False) -> Copy:
        luck.shuffle(self._free)
        count = min(luck.choice((1, 1, 2, 3, 4, 6)), len(self._free))
        there, self._free = self._free[:count], self._free[count:]
        here = luck.sample(range(HOT if luck.random() < 0.6 else SHAPE.kv[1]), count)
        first = luck.randrange(SHAPE.kv[0])
        layers = range(first, luck.randint(first + 1, SHAPE.kv[0])) if luck.random() < 0.3 else None
        before = [self.copies.target.content(("kv", item)) for item in there]
        after = [
            _mixed(was, self._source.content(("kv", item)), layers) for was, item in zip(before, here, strict=True)
        ]
        excuse = "its peer had been removed" if removed else self._unwell
        copy = Copy(0, road.generation, here, there, before, after, excuse, hopeless=removed)
        self.copies.submitted(copy)
        order = Order("submit", (road.prepared, (here, there), None, None, layers))
        ((number,),), _ = self._writer.call(step, [order], [])
        copy.number = number
        self.copies.known[number] = copy
        self.tale.tell(f"submit: {copy}, layers {'all' if layers is None else list(layers)}")
        self._look()
        return copy

    def _progress(self, luck: Random) -> None:
        """Ask about all of them, or some."""
        unquiet = self.copies.unquiet
        self._turn(asked=unquiet if luck.random() < 0.7 else luck.sample(unquiet, luck.randint(0, len(unquiet))))

    def _cancel(self, luck: Random) -> None:
        going = [copy for copy in self.copies.unquiet if copy.told is TransferState.PENDING]
        if going and self._cancels:
            copy = luck.choice(going)
            self.tale.tell(f"cancel: {copy}")
            if self._writer.call(cancel_one, copy.number):
                copy.excuse = copy.excuse or "it was cancelled"
        self._turn()

    def _release(self, luck: Random) -> None:
        self._release_all()
        self._turn()

    def _release_all(self) -> None:
        quiet = [copy for copy in self.copies.known.values() if copy.quiescent]
        self.copies.released(quiet)
        if quiet:
            self._turn([Order("release", ([copy.number for copy in quiet],))])

    def _drive(self, luck: Random) -> None:
        """Until all have ended. Those that failed may wait for a proof that does not come."""
        self._thaw(luck)
        self.tale.tell("drive")
        self._await(
            lambda: all(copy.told is not TransferState.PENDING for copy in self.copies.unquiet),
            "the end of all transfers",
        )

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        patience = Patience(self.env.patience_s)
        self._turn()
        while not condition():
            if not patience.lasts():
                going = ", ".join(str(copy) for copy in self.copies.unquiet)
                raise Broken(f"{what} did not come within {patience}: {going}")
            self._turn()

    # -- acts: peers and processes ---------------------------------------------------------------------------------

    def _meet(self, luck: Random) -> None:
        """A new generation, after the older one was removed."""
        self._thaw(luck)
        self._remove(luck)
        self._generation += 1
        self.tale.tell(f"meet, generation {self._generation}")
        (number,) = self._turn([Order("meet", (self._introduction, self._generation))])
        self._road = Road(number, self._introduction.name, self._generation)

    def _remove(self, luck: Random) -> None:
        road, self._road = self._road, None
        if road is not None:
            self.tale.tell(f"remove_peer, generation {road.generation}")
            self.copies.excuse("its peer was removed", road.generation)
            self._removed = road
            self._turn([Order("remove_peer", (road.name, road.generation))])

    def _freeze(self, luck: Random) -> None:
        if not self._frozen and self._road is not None:
            self.tale.tell("the target's process is stopped")
            self._target.freeze()
            self._frozen = True
            self._unwell = "the target's process was stopped"
            self.copies.excuse(self._unwell)
        self._turn()

    def _thaw(self, luck: Random) -> None:
        if self._frozen:
            self.tale.tell("the target's process goes on")
            self._target.thaw()
            self._frozen = False
            self._recover()
        self._turn()

    def _recover(self) -> None:
        """Until a transfer is done: what was refused while the target stood still may be refused a while longer."""
        patience = Patience(self.env.patience_s)
        luck = Random(1)  # noqa: S311 - it shall repeat
        while self._unwell:
            if self._road is None or not self._free:
                self._unwell = ""
                return
            copy = self._post(self._road, luck)
            self._await(lambda copy=copy: copy.told is not TransferState.PENDING, f"the end of {copy}")  # type: ignore[misc]
            if copy.told is TransferState.DONE:
                self._unwell = ""
            elif not patience.lasts():
                raise Broken(f"{self._unwell}, and no transfer was done for {patience} since it went on")

    def _crash(self, luck: Random) -> None:
        """Kill the target, and begin anew with its successor."""
        self.tale.tell("the target's process is killed")
        self._frozen = False
        self._target.kill()
        self.copies.excuse("the target's process was killed")
        self._await(
            lambda: all(copy.told is not TransferState.PENDING for copy in self.copies.unquiet),
            "the end of all transfers to a process that was killed",
        )
        self._look()
        for copy in self.copies.died():
            self._reclaim(copy)
        self._unwell = ""
        self._remove(luck)
        self._removed = None
        self._release_all()
        self._target = self._successor(self._target)
        self._introduction = self._target.introduce()
        self.tale.tell("the target's process is started again, with the same memory")
        self._meet(luck)
        self.env.reached("the target was killed")

    def _successor(self, gone: WireNode) -> WireNode:
        return self.env.wire(Role.DECODE, memory=gone.memory)


def _mixed(was: U8, wanted: U8, layers: range | None) -> U8:
    """An item's content after these layers of it were written."""
    if layers is None:
        return wanted
    mixed = was.copy().reshape(SHAPE.kv[0], -1)
    mixed[layers.start : layers.stop] = wanted.reshape(SHAPE.kv[0], -1)[layers.start : layers.stop]
    flat: U8 = mixed.reshape(-1)
    return flat


def explore_wires(env: Env, budget: Budget) -> None:
    """Run KV-MODEL-2."""
    world = WireWorld(env, budget.crash_every)
    kinds = [kind for kind, weight in KINDS.items() for _ in range(weight)]

    class Transfers(RuleBasedStateMachine):
        """One rule, as ``model_face.explore_faces`` has it, and for the same reason."""

        @initialize(salt=st.integers(0, 65535), crash_at=st.integers(0, budget.steps // 2))
        def begin(self, salt: int, crash_at: int) -> None:
            world.begin(salt, crash_at)

        @rule(act=st.builds(Act, st.sampled_from(kinds), st.integers(0, 65535)))
        def act(self, act: Act) -> None:
            guarded(world.tale, lambda: world.act(act))

        def teardown(self) -> None:
            guarded(world.tale, world.finish)

    explore(env, Transfers, world.tale, budget)


def replay(env: Env, acts: Sequence[Any]) -> None:
    """Do a history again, as the message of a failed check has it."""
    world = WireWorld(env, 1)
    (salt, crash_at), *rest = acts
    with_tale(env, world.tale, lambda: world.begin(salt, crash_at))
    for act in rest:
        with_tale(env, world.tale, lambda act=act: world.act(Act(*act)))  # type: ignore[misc]
    with_tale(env, world.tale, world.finish)
