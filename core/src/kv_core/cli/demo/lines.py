"""What router and ranks say to each other over pipes: one JSON object per line, its kind in ``type``."""

from __future__ import annotations

from typing import Generic, TypeAlias, TypeVar

import msgspec

MAX_LINE = 1 << 20
"""Longest line in bytes; a longer one means that something else writes to the pipe."""
_T = TypeVar("_T")


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of all messages."""


class OpenRoom(Message, frozen=True):
    """To a rank: serve this request. The three fields that a router injects."""

    bootstrap_host: str
    bootstrap_port: int
    bootstrap_room: int


class PeerDied(Message, frozen=True):
    """To a rank: the process of the other one has ended. Requests that had not met it yet never will."""


class Stop(Message, frozen=True):
    """To a rank: no more requests come. Let pages drain, report, end."""


class Ready(Message, frozen=True):
    """From a rank: its manager is open. ``control_port`` is 0 if it is not known; ``metrics_url`` is empty without one."""

    pid: int
    control_port: int
    metrics_url: str = ""


class Met(Message, frozen=True):
    """From a rank: a room has found its peer."""

    room: int


class Ended(Message, frozen=True):
    """From a rank: a room has ended there.

    ``reason`` is "stage/code" for a failed room, else empty. Decode: ``nbytes`` were compared, ``wrong_bytes`` of them
    were not as expected, ``latency_s`` from opening the room to Success. Prefill: ``nbytes`` as its metric has it.
    """

    room: int
    reason: str = ""
    message: str = ""
    nbytes: int = 0
    wrong_bytes: int = 0
    latency_s: float = 0.0
    wire_s: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the room succeeded and held the right bytes."""
        return not self.reason and not self.wrong_bytes


class Stopped(Message, frozen=True):
    """From a rank: the last message. ``stray_bytes``: bytes that landed in pages that belonged to no room."""

    pages_quarantined: int
    longest_quarantine_s: float
    stray_bytes: int
    transport: str


ToRank: TypeAlias = OpenRoom | PeerDied | Stop
FromRank: TypeAlias = Ready | Met | Ended | Stopped
_ENCODER = msgspec.json.Encoder()


def encode(message: msgspec.Struct) -> bytes:
    """A message as a line."""
    return _ENCODER.encode(message) + b"\n"


class LineReader(Generic[_T]):
    """Cuts a stream of bytes into lines and decodes each. Raises ``ValueError`` for what is no message."""

    def __init__(self, kinds: type[_T]) -> None:
        self._decoder = msgspec.json.Decoder(kinds)
        self._rest = b""

    def feed(self, data: bytes) -> list[_T]:
        """The messages that these bytes complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise ValueError(f"a line of more than {MAX_LINE} bytes is no message: {self._rest[:80]!r}...")
        return [self._decode(line) for line in lines if line]

    def _decode(self, line: bytes) -> _T:
        try:
            return self._decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise ValueError(f"a line is no message ({error}): {line[:200]!r}") from error
