"""What the model of KV-MODEL-1 remembers of one opening of one room on one side, and what was seen of its handle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from kv_conformance.nodes.memory import U8
from kv_conformance.suite.model_ledger import Item
from kv_core import FailureCode, KVPoll, Role


class Broken(Exception):
    """Something was seen that the contract does not allow. The message says what."""


class Seen(NamedTuple):
    """A handle at one moment. ``latencies``: every duration of its metric; ``now_s``: the monotonic clock."""

    state: KVPoll
    code: FailureCode | None
    failure: str
    nbytes: int | None
    chunks: int
    latencies: tuple[float | None, ...]
    release_safe: bool
    now_s: float

    @property
    def ended(self) -> bool:
        """Whether it is in one of the two states that never change again."""
        return self.state in (KVPoll.Failed, KVPoll.Success)

    def same(self, other: Seen) -> bool:
        """Whether nothing but the time and the permission to reuse pages is different."""
        return self[:6] == other[:6]


@dataclass(eq=False)
class Life:
    """One handle. Moments are numbers of steps.

    gone: when the other side could not meet it any more. The two meet on the prefill side: a sender is gone when it has ended, a
    receiver when prefill has acknowledged its end. taken: the number was in use on this side when it was opened. cut: when the engine aborted or cleared it although it
    had not been seen to end. troubled: some process was dead, or had just been restarted, during its life.

    pages, aux: the items that it moves from (prefill; in the order of sending) or to (decode; None until they are named).
    contents: what the source pages held, one for each. count: how many pages were announced. closed: nothing can be written
    for its sake any more. freed: its pages went back to those that may be named.
    """

    name: str
    side: Role
    room: int
    opened: int
    began_s: float
    taken: bool = False
    seen: Seen | None = None
    best: KVPoll = KVPoll.Bootstrapping
    ended: int | None = None
    gone: int | None = None
    cleared: bool = False
    cut: int | None = None
    dead: bool = False
    misused: bool = False
    troubled: bool = False
    initialised: bool = False
    count: int | None = None
    pages: list[int] | None = None
    aux: int | None = None
    contents: list[U8] = field(default_factory=list)
    aux_content: U8 | None = None
    chunks: int = 0
    closed: bool = False
    freed: bool = False
    partner: Life | None = None

    @property
    def state(self) -> KVPoll:
        """As last seen."""
        return self.seen.state if self.seen else KVPoll.Bootstrapping

    @property
    def code(self) -> FailureCode | None:
        """Of its failure, as last seen."""
        return self.seen.code if self.seen else None

    @property
    def live(self) -> bool:
        """Whether it goes on, as far as was seen."""
        return self.ended is None and not self.dead

    @property
    def complete(self) -> bool:
        """Whether a sender was given all that it announced."""
        return self.count is not None and self.chunks > 0 and len(self.pages or ()) == self.count

    @property
    def items(self) -> list[Item]:
        """The items that it moves from or to."""
        rows: list[Item] = [] if self.aux is None else [("aux", self.aux)]
        return [("kv", page) for page in self.pages or ()] + rows

    def overlaps(self, other: Life) -> bool:
        """Whether there was a moment at which the two may have met."""
        return not (
            (self.gone is not None and self.gone < other.opened)
            or (other.gone is not None and other.gone < self.opened)
        )

    def __str__(self) -> str:
        return f"{self.name} (room {self.room}, {self.side.value})"
