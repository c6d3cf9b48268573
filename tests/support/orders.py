"""What rooms are asked to do, and what became of them: plain values that go through a pipe as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Order:
    """One request as one side gets it.

    pages: of the prompt, of which decode has ``prefix`` already. chunks: number of sends (of pages, or of layers if
    ``layerwise``). early: prefill sends before decode has asked. act: how this side misbehaves, ``WHAT:WHEN``:

    - ``abort:STATE``, ``clear:STATE``: when ``poll()`` first says STATE (a name of ``KVPoll``; ``open``: at once)
    - ``idle:init``, ``idle:pages``: the call (``init``; ``send`` or ``send_metadata``) never comes
    - ``bad:pages``: an index out of range; ``bad:count``: one page more than was said
    - ``twice:open``: the room is opened a second time, which fails, and the first one does not notice
    """

    room: int
    addr: str
    pages: int = 4
    prefix: int = 0
    chunks: int = 1
    layerwise: bool = False
    aux: bool = False
    early: bool = False
    act: str = ""

    def to_json(self) -> dict[str, Any]:
        """Fields by name."""
        return asdict(self)


@dataclass
class Outcome:
    """How one room went on one side. Times are of the machine's monotonic clock, which its processes share.

    correct: every byte was compared (decode, after Success), None where there is nothing to compare.
    safe_s: when the pages were given back.
    """

    room: int
    role: str
    opened_s: float
    state: str = ""
    stage: str = ""
    code: str = ""
    message: str = ""
    side: str = ""
    retryable: bool = False
    ended_s: float = 0.0
    safe_s: float | None = None
    nbytes: int | None = None
    latency_s: float | None = None
    chunks: int = 0
    correct: bool | None = None

    @property
    def succeeded(self) -> bool:
        """Success, with every byte right where they could be compared."""
        return self.state == "Success" and self.correct is not False

    def to_json(self) -> dict[str, Any]:
        """Fields by name."""
        return asdict(self)

    def __str__(self) -> str:
        end = f"{self.stage}/{self.code}: {self.message}" if self.state == "Failed" else f"correct={self.correct}"
        return f"room {self.room} {self.role} {self.state} after {self.ended_s - self.opened_s:.3f} s {end}"
