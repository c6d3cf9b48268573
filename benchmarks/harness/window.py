"""Which piece of which room may be posted next, for ways that drive an engine without kv-core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Piece(NamedTuple, Generic[T]):
    """One submission."""

    room: int
    nbytes: int
    what: T


class Window(Generic[T]):
    """Rooms one after the other, ``concurrency`` of them open at any time, ``limit`` bytes posted at any time.

    ``slots``: for each slot the pieces of a room that takes it, each with its bytes. One piece is always let through.
    """

    def __init__(
        self, rooms: int, concurrency: int, slots: Sequence[Sequence[tuple[int, T]]], limit: int = 1 << 62
    ) -> None:
        self._line = self._pieces(rooms, slots)
        self._concurrency = concurrency
        self._limit = limit
        self._left: dict[int, int] = {}  # by open room: pieces that have not ended
        self._sizes = [len(slot) for slot in slots]
        self._posted = 0
        self._next = next(self._line, None)

    @staticmethod
    def _pieces(rooms: int, slots: Sequence[Sequence[tuple[int, T]]]) -> Iterator[Piece[T]]:
        for room in range(rooms):
            for nbytes, what in slots[room % len(slots)]:
                yield Piece(room, nbytes, what)

    @property
    def over(self) -> bool:
        """Whether every room has ended."""
        return self._next is None and not self._left

    def take(self) -> Piece[T] | None:
        """A piece to post now, or None if one has to end before."""
        piece = self._next
        if piece is None or (self._posted and self._posted + piece.nbytes > self._limit):
            return None
        if piece.room not in self._left:
            if len(self._left) >= self._concurrency:
                return None
            self._left[piece.room] = self._sizes[piece.room % len(self._sizes)]
        self._posted += piece.nbytes
        self._next = next(self._line, None)
        return piece

    def ended(self, piece: Piece[T]) -> None:
        """Every byte of the piece has landed."""
        self._posted -= piece.nbytes
        self._left[piece.room] -= 1
        if not self._left[piece.room]:
            del self._left[piece.room]
