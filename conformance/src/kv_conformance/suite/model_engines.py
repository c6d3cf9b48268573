"""The two engines of KV-MODEL-1: what they would do next with a room, which pages they give it, and when they take them back.
The book is told of everything before it is done.
"""

from __future__ import annotations

import itertools
from random import Random
from time import monotonic
from typing import Any

import numpy as np

from kv_conformance.nodes.env import Env
from kv_conformance.nodes.memory import POISON, Shape
from kv_conformance.suite.in_node_model import Call
from kv_conformance.suite.model_book import Book
from kv_conformance.suite.model_ledger import Item, Ledger
from kv_conformance.suite.model_life import Life
from kv_conformance.suite.model_run import Tale
from kv_core import KVPoll, Role

SIDES = (Role.PREFILL, Role.DECODE)
SHAPE = Shape(kv=(2, 20, 96), aux=(1, 6, 32), gap=64)
"""The memory of each side. Rooms with an odd number have an auxiliary row."""
OWN_ROOM = 9
"""Last digit of the rooms that the suite wants to go well: their engines agree."""


class Engines:
    """Both of them. ``handles``: by their numbers, those of the processes that there are now."""

    def __init__(self, env: Env, tale: Tale, source: Ledger, target: Ledger) -> None:
        self.source = source
        self.book = Book(target)
        self.handles: dict[Role, dict[int, Life]] = {side: {} for side in SIDES}
        self._env = env
        self._tale = tale
        self._random = env.random
        self._numbers = itertools.count(1)
        items = {pool: items for pool, (_, items, _) in SHAPE.pools().items()}
        self._free = {side: {pool: list(range(count)) for pool, count in items.items()} for side in SIDES}

    def forget(self) -> None:
        """Begin a new book: all rooms are cleared, and all pages were taken back."""
        self.book = Book(self.book.target)
        for handles in self.handles.values():
            handles.clear()

    def reclaim(self) -> None:
        """Take back the pages that the engines may use again, and use them: they get other bytes at once."""
        for life in self.book.lives:
            done = life.cleared or life.state is KVPoll.Failed or life.side is Role.PREFILL
            if life.freed or not (life.dead or (done and life.closed)):
                continue
            life.freed = True
            for item in life.items:
                self._free[life.side][item[0]].append(item[1])
                if life.side is Role.DECODE:
                    self.book.target.poison(item)
                else:
                    self._refill(item)

    def _refill(self, item: Item) -> None:
        ledger = self.source
        ledger.write(item, self._random.integers(1, POISON, ledger.nbytes(item[0]), np.uint8))

    def next(self, side: Role, room: int, luck: Random, calls: list[Call]) -> None:
        """What an engine does next with the room of this number: the calls are put at the end of ``calls``."""
        life = self.book.current(side, room)
        if life is None:
            self.open(side, room, calls)
        elif life.ended is not None:
            self.clear(life, calls)
        elif side is Role.DECODE:
            self._next_of_receiver(life, luck, calls)
        else:
            self._next_of_sender(life, luck, calls)

    def _next_of_sender(self, life: Life, luck: Random, calls: list[Call]) -> None:
        if not life.initialised:
            count = self._count(life, luck)
            row = self._take(life, "aux", 1, luck) if life.room % 2 else []
            if row or not life.room % 2:
                life.initialised, life.count, life.aux = True, count, next(iter(row), None)
                self._say(calls, life, "init", count, life.aux)
        elif not life.complete:
            assert life.count is not None, "it was announced"
            left = life.count - len(life.pages or ())
            pages = self._take(life, "kv", luck.randint(1, left) if left else 0, luck)
            if pages or not left:
                self._send(life, pages, luck, calls)

    def _send(self, life: Life, pages: list[int], luck: Random, calls: list[Call]) -> None:
        ledger = self.source
        contents = [ledger.content(("kv", page)) for page in pages]
        aux = None if life.aux is None else ledger.content(("aux", life.aux))
        layers: list[range | None] = [range(1), range(1, 2)] if pages and luck.random() < 0.25 else [None]
        self.book.sent(life, pages, contents, calls=len(layers), aux=aux)
        for some in layers:
            self._say(calls, life, "send", pages, **({} if some is None else {"layers": some}))

    def _next_of_receiver(self, life: Life, luck: Random, calls: list[Call]) -> None:
        if not life.initialised:
            life.initialised = True
            self._say(calls, life, "init")
        elif life.pages is None:
            count = self._count(life, luck)
            if len(self._free[life.side]["kv"]) < count:
                return
            row = self._take(life, "aux", 1, luck) if life.room % 2 else []
            if row or not life.room % 2:
                pages = self._take(life, "kv", count, luck)
                self.book.offered(life, pages, next(iter(row), None))
                self._say(calls, life, "send_metadata", pages, aux_index=life.aux)

    def _count(self, life: Life, luck: Random) -> int:
        """How many pages: the number that the other side has named, nearly always."""
        other = self.book.current(life.side.peer, life.room)
        known = other.count if other is not None and other.live else None
        if known is not None and (life.room % 10 == OWN_ROOM or luck.random() > 0.06):
            return known
        return luck.choice((0, 1, 1, 2, 2, 2, 3, 3, 4))

    def _take(self, life: Life, pool: str, count: int, luck: Random) -> list[int]:
        free = self._free[life.side][pool]
        free.sort()  # as engines do: the same pages again and again
        if luck.random() < 0.5:
            luck.shuffle(free)
        taken, free[:] = free[:count], free[count:]
        return taken

    def init_again(self, life: Life, calls: list[Call]) -> None:
        """A wrong call."""
        life.misused = life.misused or life.live
        self._say(calls, life, "init", *((1,) if life.side is Role.PREFILL else ()))

    def open(self, side: Role, room: int, calls: list[Call]) -> Life:
        """A new handle."""
        number = next(self._numbers)
        life = self.book.opened(f"{side.value[0]}{number}", side, room, monotonic())
        self.handles[side][number] = life
        self._say(calls, life, "open", self._env.addr, room)
        if any(other.side is side and other.room == room and other is not life for other in self.book.lives):
            self._env.reached("a number was used again")
        return life

    def abort(self, life: Life | None, calls: list[Call]) -> None:
        """Abort it, if there is one."""
        if life is not None:
            self.book.cut(life, clear=False)
            self._say(calls, life, "abort")

    def clear(self, life: Life | None, calls: list[Call]) -> None:
        """Clear it, if there is one."""
        if life is None:
            return
        if life.state is KVPoll.Success:
            self._env.reached("a room succeeded")
        self.book.cut(life, clear=True)
        self._say(calls, life, "clear")

    def _say(self, calls: list[Call], life: Life, method: str, *args: Any, **named: Any) -> None:
        calls.append(Call(int(life.name[1:]), method, args, named))
        told = (*map(str, args), *(f"{name}={value}" for name, value in named.items()))
        self._tale.tell(f"{life}: {method}({', '.join(told)})")
