"""What comes out of a control channel's ``poll``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Frame:
    """One packet that somebody sent to this channel; not yet decoded, and from anybody."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """An established connection to this endpoint broke just now. Another attempt is already being made."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class ConnectionRefused:
    """Nobody listens at this endpoint (verified). What was queued for it is dropped; the next ``send`` connects anew."""

    endpoint: str


Incoming: TypeAlias = Frame | ConnectionLost | ConnectionRefused
