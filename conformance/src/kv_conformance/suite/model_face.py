"""KV-MODEL-1: two engines and their nodes, which do things in an order that is drawn; after each of them both are looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import FaceNode
from kv_conformance.suite.in_node_model import Call, forget, step
from kv_conformance.suite.model_book import Book
from kv_conformance.suite.model_engines import OWN_ROOM, SHAPE, SIDES, Engines
from kv_conformance.suite.model_ledger import Ledger
from kv_conformance.suite.model_life import Broken, Life
from kv_conformance.suite.model_run import Budget, Patience, Tale, explore, guarded, with_tale
from kv_core import KVPoll, Role

ROOMS = (1, 2, 3)
"""Few numbers, so that they are used again: what belongs to an old life must not touch the new one. Each history has numbers
of its own, these and 10 times its number: what is remembered of rooms that ended early (tombstones) ends with it.
"""
CONFIG = {"probe_interval_s": 0.5, "dead_after": 20}
"""A process that is killed is noticed by its connections; one that only gets no processor time is not to be taken for dead."""
SLOW = "unacknowledged_messages"
"""What takes its time to come to rest: looked at after the last history only."""
KINDS = {
    "go": 16, "go_far": 8, "go_both": 16, "abort": 4, "snatch": 10, "clear": 4, "renew": 10, "look": 3, "advance": 8,
    "good_room": 1, "open_twice": 1, "init_twice": 1,
}  # fmt: skip
"""How often each kind of act is drawn, in relation to the others."""


class Act(NamedTuple):
    """One step: what to do, on which side, with which room; ``luck`` decides the rest."""

    kind: str
    side: str
    room: int
    luck: int


class FaceWorld:
    """Two engines with their nodes, from one history to the next. ``crash_every``: in every so many-th history a process is
    killed.
    """

    def __init__(self, env: Env, crash_every: int) -> None:
        self.env = env
        self.tale = Tale(f"{__name__}.replay")
        pair = env.pair(SHAPE, config=CONFIG)
        self._nodes = {Role.PREFILL: pair.prefill, Role.DECODE: pair.decode}
        self.engines = Engines(env, self.tale, *(Ledger(self._nodes[side].memory) for side in SIDES))
        self._crash_every = crash_every
        self._crash_at = -1
        self._salt = 0
        with_tale(env, self.tale, self._begin_well)

    def _begin_well(self) -> None:
        """The two ranks meet: only who knows the other one can tell it that a room ended early."""
        if not self._whole_room(Random(0)):  # noqa: S311 - it shall repeat
            raise Broken("the very first room did not succeed on both sides")
        self.finish()

    @property
    def book(self) -> Book:
        """The oracle of this history."""
        return self.engines.book

    # -- a history -------------------------------------------------------------------------------------------------

    def begin(self, salt: int, crash_at: int) -> None:
        """A new history; everything is at rest."""
        self.tale.begin()
        self._salt = salt
        self._crash_at = crash_at if self.tale.number % self._crash_every == 0 else -1
        self.tale.acts.append((salt, self._crash_at))

    def act(self, act: Act) -> None:
        """One step, and a look at everything."""
        self.tale.acts.append(act)
        luck = Random(f"{act.luck} {len(self.tale.acts)} {self._salt}")  # noqa: S311 - it shall repeat
        side = Role(act.side)
        if len(self.tale.acts) - 2 == self._crash_at:
            self._crash(SIDES[self._salt % 2])
        elif side in self.book.down:
            self._restart(side)
        else:
            perform: Callable[[Role, int, Random], None] = getattr(self, f"_{act.kind}")
            perform(side, self._number(act.room), luck)

    def finish(self) -> None:
        """Clear every room, wait until both sides are at rest, and forget the history."""
        for side in list(self.book.down):
            self._restart(side)
        self._recover()
        for side in SIDES:
            calls: list[Call] = []
            for life in self.book.lives:
                if life.side is side and not life.cleared and not life.dead:
                    self.engines.clear(life, calls)
            self._turn({side: calls})
        self._settle()
        for node in self._nodes.values():
            self._rest(node, SLOW)
            node.call(forget)
        self.engines.forget()

    def end(self) -> None:
        """After the last history: nothing is left of any."""
        for node in self._nodes.values():
            self._rest(node, "")

    def _rest(self, node: FaceNode, but: str) -> None:
        patience = Patience(self.env.patience_s)
        while left := [one for one in node.unrest() if not but or not one.startswith(but)]:
            if not patience.lasts():
                raise Broken(
                    f"{node.process.name}: every room was cleared and may be released, and the snapshot is not at rest after "
                    f"{patience}: {', '.join(left)}"
                )

    def _number(self, room: int) -> int:
        return 10 * self.tale.number + room

    # -- turns -----------------------------------------------------------------------------------------------------

    def _turn(self, calls: Mapping[Role, list[Call]] | None = None) -> None:
        """Make these calls, look at all handles of both sides at the same time, then at both memories."""
        asked = [side for side in SIDES if side not in self.book.down]
        for side in asked:
            self._nodes[side].process.tell("call", step, (calls or {}).get(side, []))
        answers: dict[Role, Any] = {}
        for side in asked:
            try:
                answers[side] = self._nodes[side].process.answer("call")
            except Exception as error:  # noqa: BLE001 - the other one's answer is to be fetched all the same
                answers[side] = error
        for side, answer in answers.items():
            if isinstance(answer, Exception):
                raise answer
            for number, seen in answer.items():
                self.book.saw(self.engines.handles[side][number], seen)
        self.book.check()
        problem = self.engines.source.wrong()
        if problem:
            raise Broken(f"prefill's memory: {problem}")
        self.engines.reclaim()
        self.book.step += 1

    def _settle(self) -> None:
        """Wait until everything that must happen has happened."""
        patience = Patience(self.env.patience_s)
        self._turn()
        while waits := self.book.waits():
            if not patience.lasts():
                raise Broken(f"what must come did not come within {patience}: {'; '.join(waits)}")
            self._turn()

    # -- acts ------------------------------------------------------------------------------------------------------

    def _go(self, side: Role, room: int, luck: Random) -> None:
        """What an engine would do next with this room."""
        calls: list[Call] = []
        self.engines.next(side, room, luck, calls)
        self._turn({side: calls})

    def _go_far(self, side: Role, room: int, luck: Random) -> None:
        """The next three things at once."""
        calls: list[Call] = []
        for _ in range(3):
            self.engines.next(side, room, luck, calls)
        self._turn({side: calls})

    def _abort(self, side: Role, room: int, luck: Random) -> None:
        calls: list[Call] = []
        self.engines.abort(self.book.current(side, room), calls)
        self._turn({side: calls})

    def _go_both(self, side: Role, room: int, luck: Random) -> None:
        """The next things on both sides at the same moment."""
        calls: dict[Role, list[Call]] = {side: [], side.peer: []}
        for where in (side, side.peer):
            for _ in range(luck.randint(1, 3) if where not in self.book.down else 0):
                self.engines.next(where, room, luck, calls[where])
        self._turn(calls)

    def _snatch(self, side: Role, room: int, luck: Random) -> None:
        """The next two things, and at once an abort or a clear, on either side, while the bytes are under way; or a new opening."""
        calls: dict[Role, list[Call]] = {side: [], side.peer: []}
        for _ in range(luck.randint(1, 2)):
            self.engines.next(side, room, luck, calls[side])
        if luck.random() < 0.6:
            self._turn(calls)
            calls = {side: [], side.peer: []}
        where = side.peer if luck.random() < 0.5 and side.peer not in self.book.down else side
        life = self.book.current(where, room)
        if luck.random() < 0.4:
            self.engines.abort(life, calls[where])
        else:
            self.engines.clear(life, calls[where])
            for _ in range(luck.randint(0, 2)):
                self.engines.next(where, room, luck, calls[where])
        self._turn(calls)

    def _clear(self, side: Role, room: int, luck: Random) -> None:
        calls: list[Call] = []
        life = self.book.current(side, room)
        self.engines.clear(life, calls)
        self._turn({side: calls})

    def _renew(self, side: Role, room: int, luck: Random) -> None:
        """Clear the number on both sides, at the same moment or this one first, and begin it anew at once."""
        calls: dict[Role, list[Call]] = {}
        together = luck.random() < 0.5
        for where in (side, side.peer):
            if where in self.book.down:
                continue
            calls[where] = []
            life = self.book.current(where, room)
            self.engines.clear(life, calls[where])
            for _ in range(luck.randint(1, 4)):
                self.engines.next(where, room, luck, calls[where])
            if not together:
                self._turn(calls)
                calls = {}
        self._turn(calls)

    def _look(self, side: Role, room: int, luck: Random) -> None:
        self._turn()

    def _advance(self, side: Role, room: int, luck: Random) -> None:
        """Let everything come to pass that must."""
        if not self.book.down:
            self._recover()
        self.tale.tell("everything that must happen has happened")
        self._settle()

    def _good_room(self, side: Role, room: int, luck: Random) -> None:
        """A room that must go well, whatever the others do."""
        if not self.book.down:
            self._recover()
            if not self._whole_room(luck):
                raise Broken(f"room {self._number(OWN_ROOM)}, to which nothing was done, did not succeed on both sides")

    def _open_twice(self, side: Role, room: int, luck: Random) -> None:
        """Open the number although it may be in use."""
        calls: list[Call] = []
        life = self.engines.open(side, room, calls)
        self._turn({side: calls})
        if life.taken:
            calls = []
            self.engines.clear(life, calls)
            self._turn({side: calls})

    def _init_twice(self, side: Role, room: int, luck: Random) -> None:
        life = self.book.current(side, room)
        calls: list[Call] = []
        if life is not None and life.initialised:
            self.engines.init_again(life, calls)
        self._turn({side: calls})

    # -- processes -------------------------------------------------------------------------------------------------

    def _crash(self, side: Role) -> None:
        self.tale.tell(f"{side.value}'s process is killed")
        self._nodes[side].kill()
        self.engines.handles[side].clear()
        self.book.crashed(side)
        self._turn()
        self.env.reached("a process was killed")

    def _restart(self, side: Role) -> None:
        self.tale.tell(f"{side.value}'s process is started again, with the same memory")
        self._nodes[side] = self.env.face(side, config=CONFIG, memory=self._nodes[side].memory)
        self.book.down.discard(side)
        self._turn()

    def _recover(self) -> None:
        """After a restart: wait until rooms go well again."""
        patience = Patience(self.env.patience_s)
        luck = Random(0)  # noqa: S311 - it shall repeat
        while self.book.turmoil:
            if self._whole_room(luck):
                self.book.recovered()
            elif not patience.lasts():
                raise Broken(f"a process was restarted, and no room has succeeded for {patience} since")

    @staticmethod
    def _over(lives: Sequence[Life]) -> bool:
        return all(life.ended is not None for life in lives) or any(life.state is KVPoll.Failed for life in lives)

    def _whole_room(self, luck: Random) -> bool:
        """A room from its opening to its end; whether it succeeded on both sides."""
        room = self._number(OWN_ROOM)
        for side in SIDES:
            calls: list[Call] = []
            for _ in range(2):
                self.engines.next(side, room, luck, calls)
            self._turn({side: calls})
        lives = [life for life in map(self.book.current, SIDES, (room, room)) if life is not None]
        patience = Patience(self.env.patience_s)
        # One that failed may leave the other waiting for its own deadline: it met a process that is gone, say.
        while not self._over(lives) and patience.lasts():
            for side, life in zip(SIDES, lives, strict=True):
                calls = []
                if life.live and (life.pages is None or not life.complete):
                    self.engines.next(side, room, luck, calls)
                self._turn({side: calls})
        good = all(life.state is KVPoll.Success for life in lives)
        for side, life in zip(SIDES, lives, strict=True):
            calls = []
            self.engines.clear(life, calls)
            self._turn({side: calls})
        return good


def _acts() -> st.SearchStrategy[Act]:
    kinds = [kind for kind, weight in KINDS.items() for _ in range(weight)]
    sides = [side.value for side in SIDES]
    return st.builds(Act, st.sampled_from(kinds), st.sampled_from(sides), st.sampled_from(ROOMS), st.integers(0, 65535))


def explore_faces(env: Env, budget: Budget) -> None:
    """Run KV-MODEL-1."""
    world = FaceWorld(env, budget.crash_every)

    class Rooms(RuleBasedStateMachine):
        """One rule, with the kinds of acts as its argument: Hypothesis leaves out some rules of each history altogether,
        and a history in which nothing is ever opened, or sent, finds nothing.
        """

        @initialize(salt=st.integers(0, 65535), crash_at=st.integers(0, budget.steps // 2))
        def begin(self, salt: int, crash_at: int) -> None:
            world.begin(salt, crash_at)

        @rule(act=_acts())
        def act(self, act: Act) -> None:
            guarded(world.tale, lambda: world.act(act))

        def teardown(self) -> None:
            guarded(world.tale, world.finish)

    explore(env, Rooms, world.tale, budget)
    with_tale(env, world.tale, world.end)


def replay(env: Env, acts: Sequence[Any]) -> None:
    """Do a history again, as the message of a failed check has it."""
    world = FaceWorld(env, 1)
    (salt, crash_at), *rest = acts
    with_tale(env, world.tale, lambda: world.begin(salt, crash_at))
    for act in rest:
        with_tale(env, world.tale, lambda act=act: world.act(Act(*act)))  # type: ignore[misc]
    with_tale(env, world.tale, world.finish)
