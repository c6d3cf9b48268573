"""The oracle of KV-MODEL-2: from what was submitted, and what was told of it, what may be told next, and which bytes are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kv_conformance.nodes.memory import U8
from kv_conformance.suite.model_ledger import Item, Ledger
from kv_conformance.suite.model_life import Broken
from kv_core import TransferState


@dataclass(eq=False)
class Copy:
    """One submission: its transfer's number; the items that it moves from, and to; what shall be there then.

    excuse: why it may fail; empty if it may not. hopeless: it must fail. told: the last state that was told of it.
    """

    number: int
    generation: int
    here: list[int]
    there: list[int]
    before: list[U8]
    after: list[U8]
    excuse: str = ""
    hopeless: bool = False
    told: TransferState = TransferState.PENDING
    quiescent: bool = False
    released: bool = False

    @property
    def items(self) -> list[Item]:
        """The items that it moves to."""
        return [("kv", item) for item in self.there]

    def __str__(self) -> str:
        return f"transfer {self.number} (generation {self.generation}, items {self.here} to {self.there})"


class Copies:
    """All transfers that are not released. An item is the target of one of them at most."""

    def __init__(self, target: Ledger) -> None:
        self.target = target
        self.known: dict[int, Copy] = {}

    def submitted(self, copy: Copy) -> None:
        """From now on its bytes may land. To be said before it is submitted, in case they do at once; then it gets its number."""
        self.target.open(copy.items)
        for item, content in zip(copy.items, copy.after, strict=True):
            self.target.allow(item, content)

    def excuse(self, why: str, generation: int | None = None) -> None:
        """Something happened on account of which transfers that go on (in this generation, or in any) may fail."""
        for copy in self.unquiet:
            if generation in (None, copy.generation) and copy.told is TransferState.PENDING:
                copy.excuse = copy.excuse or why

    @property
    def unquiet(self) -> list[Copy]:
        """Those of which bytes may still land."""
        return [copy for copy in self.known.values() if not copy.quiescent]

    def tell(
        self, number: int, state: TransferState, error: str | None, *, quiescent: bool, refused: bool
    ) -> Copy | None:
        """A record. The transfer, if it became quiescent by it. Raises ``Broken`` if it can't be."""
        copy = self.known.get(number)
        if copy is None or copy.released:
            raise Broken(f"transfer {number} is reported as {state.value}: it was released, or never submitted")
        if copy.told is not TransferState.PENDING and state is not copy.told:
            raise Broken(f"{copy} was {copy.told.value} and is {state.value} now: an end is final")
        copy.told = state
        if state is TransferState.PENDING:
            return None
        if state is TransferState.DONE:
            self._done(copy, quiescent=quiescent)
        elif not copy.excuse:
            raise Broken(f"{copy} {'was refused' if refused else 'failed'}, and nothing was done to it: {error}")
        elif not error:
            raise Broken(f"{copy} failed without a sentence")
        if not quiescent:
            return None
        if state is TransferState.FAILED and refused:
            lacks = self.target.lacks(dict(zip(copy.items, copy.before, strict=True)))
            if lacks:
                raise Broken(f"{copy} was refused before anything was posted ({error}), and it has written: {lacks}")
        copy.quiescent = True
        self._close(copy)
        return copy

    def _done(self, copy: Copy, *, quiescent: bool) -> None:
        if not quiescent:
            raise Broken(f"{copy} is done and not quiescent: DONE implies quiescent")
        if copy.hopeless:
            raise Broken(f"{copy} is done, and {copy.excuse} when it was submitted: it must be refused")
        lacks = self.target.lacks(dict(zip(copy.items, copy.after, strict=True)))
        if lacks:
            raise Broken(f"{copy} is done, and its bytes are not there: {lacks}")

    def died(self) -> list[Copy]:
        """The process that they went to has ended: what is there now, stays. Those that nobody needs to wait for any more."""
        ended = self.unquiet
        for copy in ended:
            copy.quiescent = True
            self._close(copy)
        return ended

    def _close(self, copy: Copy) -> None:
        problem = self.target.close(copy.items)
        if problem:
            raise Broken(f"{copy} is {copy.told.value} and quiescent; the target's memory: {problem}")

    def released(self, copies: Sequence[Copy]) -> None:
        """They were given back."""
        for copy in copies:
            copy.released = True
            del self.known[copy.number]

    def check(self) -> None:
        """Nothing is written but what goes on. Raises ``Broken``."""
        problem = self.target.wrong()
        if problem:
            raise Broken(f"the target's memory: {problem}")
