"""The ranks of one case, each in a process of its own, and rooms across them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import product
from types import TracebackType
from typing import TYPE_CHECKING, Any

from core.tests.layout.topologies.model import Case
from kv_core import BootstrapServer, Capability, load_backend
from tests.support.orders import Outcome
from tests.support.pair import at_rest
from tests.support.rank import RankProcess
from tests.support.waiting import wait_until
from tests.unequal.engine import RoomOrder
from tests.unequal.memory import OPAQUE, WINDOW
from tests.unequal.wire import to_json

if TYPE_CHECKING:
    from typing_extensions import Self

PROGRAM = "tests.unequal.rank_main"
MOST_RANKS = 8
LIMIT_S = 120.0
"""How long anything may take: reached only by a test that fails, on however busy a machine."""


def state_pools(case: Case) -> tuple[str, ...]:
    """The state that may move in a case: window pages need equal pages, what is opaque equal tensor parallel sizes."""
    if not case.state:
        return ()
    source, destination = case.source, case.destination
    paged = (WINDOW,) if (source.page, source.cp) == (destination.page, destination.cp) else ()
    return ("conv", *paged, *((OPAQUE,) if source.tp == destination.tp else ()))


class Workers:
    """Rank processes that wait for a case, on one backend: as many as the largest one has needed. They load once."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.reads = Capability.READ in load_backend(backend).info.capabilities
        self.rooms = itertools.count(1)
        self._idle: list[RankProcess] = []
        self._stack = ExitStack()
        self._names = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def take(self) -> RankProcess:
        """One that has no rank."""
        if self._idle:
            return self._idle.pop()
        rank = RankProcess("rank", name=f"rank process {next(self._names)}", program=PROGRAM)
        self._stack.callback(rank.close)
        return rank

    def give_back(self, ranks: Iterable[RankProcess], *, whole: bool) -> None:
        """What has closed its manager may serve again, if it is ``whole``; else it is ended."""
        for rank in ranks:
            if whole and rank.alive:
                rank.ended.clear()
                rank.released.clear()
                self._idle.append(rank)
            else:
                rank.kill()


class Member:
    """A rank of a scene. ``place``: (tp, pp, cp, dp) ranks."""

    def __init__(self, process: RankProcess, role: str, place: tuple[int, ...]) -> None:
        self.process = process
        self.role = role
        self.place = place

    def __str__(self) -> str:
        return f"{self.role} {self.place}"


class Scene:
    """A prefill instance and the ranks of one or more decode instances. ``config``: of all managers."""

    def __init__(self, workers: Workers, *, config: dict[str, Any]) -> None:
        self.workers = workers
        self.config = config
        self.members: list[Member] = []
        self.server = BootstrapServer(port=0)
        self.failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        whole = exc is None and not self.failed
        try:
            if whole:
                self.ask([member for member in self.members if member.process.alive], "close")
        except AssertionError:
            whole = False
            raise
        finally:
            self.workers.give_back([member.process for member in self.members], whole=whole)
            self.server.close()

    # -- ranks -----------------------------------------------------------------------------------------------------

    def prefill(self, case: Case, **more: Any) -> list[Member]:
        """Every rank of the prefill instance."""
        return self._play(case, "prefill", case.source.sizes, more)

    def decode(self, case: Case, **more: Any) -> list[Member]:
        """The ranks of one of decode's data-parallel ranks: the last one."""
        return self._play(case, "decode", case.destination.sizes, more)

    def again(self, lost: Member, case: Case, **more: Any) -> Member:
        """Another process in the place of one that has ended."""
        (member,) = self._begin(case, lost.role, [lost.place], more)
        self.members.remove(lost)
        return member

    def _play(self, case: Case, role: str, sizes: tuple[int, int, int, int], more: dict[str, Any]) -> list[Member]:
        tp, pp, cp, dp = (range(size) for size in sizes)
        return self._begin(case, role, list(product(tp, pp, cp, dp if role == "prefill" else dp[-1:])), more)

    def _begin(self, case: Case, role: str, places: list[tuple[int, ...]], more: dict[str, Any]) -> list[Member]:
        config = self.config | ({"bootstrap_addr": self.server.address} if role == "prefill" else {})
        told = {"pools": state_pools(case), "twist": "", **more}
        made = [Member(self.workers.take(), role, place) for place in places]
        self.members += made
        numbers = [
            member.process.begin(
                "play", case=to_json(case), role=role, ranks=member.place, backend=self.workers.backend, config=config, **told,
            )
            for member in made
        ]  # fmt: skip
        for member, number in zip(made, numbers, strict=True):
            member.process.reply(number, LIMIT_S)
        return made

    @staticmethod
    def ask(members: Sequence[Member], do: str, **arguments: Any) -> list[Any]:
        """A command to each of them at the same time; their replies."""
        numbers = [member.process.begin(do, **arguments) for member in members]
        return [member.process.reply(number, LIMIT_S) for member, number in zip(members, numbers, strict=True)]

    # -- rooms -----------------------------------------------------------------------------------------------------

    def open(self, members: Sequence[Member], orders: Sequence[RoomOrder]) -> None:
        """A room on these ranks, each with an order of its own."""
        numbers = [
            member.process.begin("open", order=order.to_json()) for member, order in zip(members, orders, strict=True)
        ]
        for member, number in zip(members, numbers, strict=True):
            member.process.reply(number, LIMIT_S)

    def ended(self, members: Sequence[Member], room: int) -> list[Outcome]:
        """How the room ended on each of these ranks, waited for, until their pages are safe."""
        for what in ("ended", "released"):
            wait_until(
                lambda w=what: all(room in getattr(member.process, w) for member in members),  # type: ignore[misc]
                lambda w=what: f"room {room} has not {w} on {self._left(members, room, w)}",  # type: ignore[misc]
                LIMIT_S,
            )
        return [member.process.ended[room] for member in members]

    @staticmethod
    def _left(members: Sequence[Member], room: int, what: str) -> str:
        left = [member for member in members if room not in getattr(member.process, what)]
        return "; ".join(
            f"{member}: {member.process.call('state', room=room) or member.process.ended.get(room)}, "
            f"{member.process.call('snapshot')}, {member.process.log()}"
            for member in left
        )  # fmt: skip

    def in_the_middle(self, members: Sequence[Member], room: int) -> None:
        """Until the room moves, on all of these ranks."""

        def states() -> list[str]:
            return self.ask(members, "state", room=room)

        wait_until(
            lambda: set(states()) == {"Transferring"},
            lambda: f"room {room} moves: {states()}, {[str(m.process.ended.get(room)) for m in members]}",
            LIMIT_S,
        )

    def rest(self, *, troubled: bool = False) -> list[str]:
        """What is still alive on a rank that should be at rest by now, waited for; threads that survived exceptions.

        ``troubled``: a peer was killed, and an engine may have raised what it thinks of that.
        """
        found = []
        for member in self.members:
            try:
                wait_until(lambda m=member: not _unrest(m), limit_s=LIMIT_S)  # type: ignore[misc]
            except AssertionError:
                found.append(f"{member} is not at rest: {_unrest(member)}")
            for name, thread in member.process.call("health").items():
                if thread["exceptions"] and not troubled:
                    found.append(f"{member}: thread {name}: {thread}: {member.process.log()}")
        return found


def _unrest(member: Member) -> list[str]:
    threads = member.process.call("health")
    dead = [f"thread {name} has ended" for name, thread in threads.items() if not thread["alive"]]
    return at_rest(member.process.call("snapshot")) + dead
