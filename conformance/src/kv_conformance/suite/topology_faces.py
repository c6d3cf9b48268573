"""Two instances of unequal topologies, a process with a manager for each rank, and rooms between all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import FaceNode, Room
from kv_conformance.nodes.memory import POISON, Image, Memory
from kv_conformance.suite.cache import Cache, Items, Model, Side
from kv_conformance.suite.topologies import Rank, ranks
from kv_core import KVPoll, Role


@dataclass
class Seat:
    """A rank, its process, and its handle in the room that was opened last."""

    rank: Rank
    node: FaceNode
    handle: Room | None = None

    @property
    def room(self) -> Room:
        """The handle."""
        assert self.handle is not None, "no room was opened"
        return self.handle

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.node.process.name} (tp, pp, cp, dp {self.rank.topology.ranks} of {self.rank.topology.sizes})"

    def send(self, pages: Items | None = None, *, states: bool = True, layers: range | None = None) -> None:
        """Prefill: send these pages (None: all), and all state items with them, if so wanted."""
        named = self.rank.states() if states else None
        here = {name: np.asarray(items, np.uint64) for name, items in (named or {}).items()}
        self.room.send(self.rank.pages if pages is None else pages, state_indices=here or None, layers=layers)

    def init(self) -> None:
        """Prefill: announce all of its pages."""
        self.room.init(len(self.rank.pages), self.rank.row)

    def name_pages(self, prefix: int = 0) -> None:
        """Decode: name all of its pages; ``prefix``: those before them, which it has."""
        named = self.rank.states()
        states = {name: np.asarray(items, np.uint64) for name, items in (named or {}).items()}
        self.room.send_metadata(
            self.rank.pages, aux_index=self.rank.row, state_indices=states or None, decode_prefix_len=prefix
        )

    def expected(self, **what: Any) -> Image:
        """Decode: its poisoned memory with what is to be there; ``what``: see ``Rank.expect``."""
        image = Image(self.rank.shape, np.full(self.node.memory.shape.nbytes, POISON, np.uint8))
        self.rank.expect(image, **what)
        return image

    def compare(self, expected: Image, what: str = "") -> None:
        """Decode: all of its memory."""
        wrong = self.node.memory.difference(expected)
        assert not wrong, f"{self.name}{what and f', {what}'}: {wrong}"

    def has(self, expected: Image) -> bool:
        """Whether its memory is so by now."""
        return not self.node.memory.difference(expected)


class Instances:
    """Both instances. ``prefix``: tokens that decode has already, a multiple of both page sizes or of decode's alone.

    Nothing is opened yet. Raises what a manager raises that can't be made.
    """

    def __init__(
        self, env: Env, model: Model, source: Side, destination: Side, *, prefix: int = 0, fault: Fault | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.env = env
        self.prefix = prefix // destination.page
        self.cache = Cache(model, env.random, max(source.page, destination.page))
        begins = prefix // source.page, self.prefix
        self.prefills, self.decodes = (
            list(self._seats(role, ranks(self.cache, side, begin), fault, config))
            for role, side, begin in zip((Role.PREFILL, Role.DECODE), (source, destination), begins, strict=True)
        )
        for seat in self.seats:
            seat.node.process.started()
        self._numbers = iter(range(1, 1 << 30))

    def _seats(
        self, role: Role, chosen: Sequence[Rank], fault: Fault | None, config: Mapping[str, Any] | None
    ) -> Iterator[Seat]:
        for rank in chosen:
            memory = Memory(rank.shape)
            memory.poison()
            if role is Role.PREFILL:
                rank.fill(memory)
            name = f"{role.value}-tp{rank.topology.tp_rank}-pp{rank.topology.pp_rank}"
            yield Seat(rank, self.env.face(role, memory=memory, fault=fault, config=config, name=name, wait=False))

    @property
    def seats(self) -> list[Seat]:
        """All ranks of both."""
        return [*self.prefills, *self.decodes]

    def open(self) -> None:
        """Open a room on all ranks, with receivers' ``init``."""
        number = next(self._numbers)
        for seat in self.seats:
            seat.handle = seat.node.open(self.env.addr, number)
        for seat in self.decodes:
            seat.room.init()

    def begin(self, *, init_late: bool = False) -> None:
        """Open a room in which all have named their pages, and nothing was sent; decode's memory is poisoned. init_late: prefill
        announces its pages when it knows decode's.
        """
        for seat in self.decodes:
            seat.node.memory.poison()
        self.open()
        for seat in () if init_late else self.prefills:
            seat.init()
        for seat in self.decodes:
            seat.name_pages(self.prefix)
        for seat in self.prefills:
            seat.room.until(KVPoll.WaitingForInput, KVPoll.Failed)
        for seat in self.prefills if init_late else ():
            seat.init()

    def succeed(self) -> None:
        """All handles must end well, with their pages free."""
        for seat in self.seats:
            look = seat.room.until()
            assert look.state is KVPoll.Success, f"room {seat.room.room} at {seat.name} failed: {look.failure}"
        for seat in self.seats:
            seat.node.await_safe(seat.room)

    def none_has_ended(self, when: str) -> None:
        """No handle may say that its room is over, or that its pages are free."""
        for seat in self.seats:
            look = seat.room.look()
            assert not look.state.terminal, f"{when}, and {seat.name} says {look.state.name}: {look.failure}"
            assert not look.release_safe, f"{when}, and {seat.name} says that its pages may be used again"

    def everything(self) -> None:
        """Decode's memory must have all of the cache, each rank its part."""
        for seat in self.decodes:
            seat.compare(seat.expected())

    def moves(self) -> None:
        """A room from its opening to its good end, in two chunks, with every byte compared."""
        self.begin()
        for seat in self.prefills:
            middle = len(seat.rank.pages) // 2
            seat.send(seat.rank.pages[:middle], states=False)
            seat.send(seat.rank.pages[middle:])
        self.succeed()
        self.everything()

    def close(self) -> None:
        """Close all managers: others may take the prefill instance's place."""
        for seat in self.seats:
            seat.node.close()
