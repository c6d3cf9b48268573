"""Rooms between two rank processes, a number of them at any time, until told to pause."""

from __future__ import annotations

from dataclasses import replace

from tests.support.orders import Order, Outcome
from tests.support.rank import RankProcess


class Traffic:
    """Call ``pump`` often. ``template``: what each order looks like but for its number. ``first``: room numbers."""

    def __init__(
        self, prefill: RankProcess, decode: RankProcess, template: Order, concurrency: int, first: int = 1
    ) -> None:
        self.prefill = prefill
        self.decode = decode
        self.template = template
        self.concurrency = concurrency
        self.live: set[int] = set()
        self.finished: dict[int, tuple[Outcome, Outcome]] = {}
        self.paused = False
        self._next = first

    @property
    def sides(self) -> tuple[RankProcess, RankProcess]:
        """Prefill, decode."""
        return self.prefill, self.decode

    def order(self) -> Order:
        """The next one, with a number of its own."""
        number, self._next = self._next, self._next + 1
        return replace(self.template, room=number)

    def pump(self) -> list[int]:
        """Take note of rooms that ended on both sides and open new ones for them; returns what ended."""
        done = [room for room in self.live if room in self.prefill.ended and room in self.decode.ended]
        for room in done:
            self.live.remove(room)
            self.finished[room] = (self.prefill.ended[room], self.decode.ended[room])
        wanted = 0 if self.paused else self.concurrency - len(self.live)
        if wanted > 0:
            self.open([self.order() for _ in range(wanted)])
        return done

    def open(self, orders: list[Order]) -> None:
        """Give these orders to both sides."""
        self.live.update(order.room for order in orders)
        for side in self.sides:
            side.open(orders)

    def unsuccessful(self) -> list[str]:
        """Rooms that did not go well on both sides, as text."""
        return [f"{outcome}" for pair in self.finished.values() for outcome in pair if not outcome.succeeded]
