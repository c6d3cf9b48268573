"""Sequence numbers: eight bytes big-endian, dense inside a life, and with the life in them.

A publisher that starts again at 0 is not heard: Dynamo's indexer 1.6.1 (measured) and sgl-router skip numbers that are not
above the last one, and keep the blocks of the life before. So a life begins at ``Unix milliseconds << 22``: later lives are
higher, a restart is a gap to everybody, and ``epoch_of`` tells the two apart. (2**22 batches in each millisecond would be
needed to overtake the clock; below 2**63 until the year 2039, which sgl-router's signed reading needs.)
"""

from __future__ import annotations

EPOCH_SHIFT = 22
END_SEQ = (-1).to_bytes(8, "big", signed=True)
"""Ends a replay."""
A_TIME = 1_000_000_000_000
"""An epoch above this is a time (2001 or later, in milliseconds); a publisher that counts from 0 has a small one."""


def first_of_life(unix_ms: int) -> int:
    """The first number of a life that begins now."""
    return unix_ms << EPOCH_SHIFT


def epoch_of(seq: int) -> int:
    """In which life a number was given: its start in Unix milliseconds, or a small number for a publisher that counts from 0.

    A life of more than 2**22 batches (four million) runs on into later values: then two epochs may be one life, never the
    other way round.
    """
    return seq >> EPOCH_SHIFT


def begins_a_life(seq: int) -> bool:
    """Whether nothing can have been published before this number by the same publisher."""
    return seq == 0 or (epoch_of(seq) > A_TIME and seq == first_of_life(epoch_of(seq)))


def to_frame(seq: int) -> bytes:
    """The frame of a number."""
    return seq.to_bytes(8, "big")


def from_frame(frame: bytes) -> int:
    """The number of a frame. Raises ValueError unless it has eight bytes."""
    if len(frame) != 8:
        raise ValueError(f"a sequence number has 8 bytes, not {len(frame)}")
    return int.from_bytes(frame, "big")
