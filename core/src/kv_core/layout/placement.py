"""Where the pages that two ranks name stand in a prompt: page sizes, context parallelism, and what decode already has."""

from __future__ import annotations

from typing import NamedTuple

from kv_core.contract.transport import U64
from kv_core.layout.pages import Pages


class PageSide(NamedTuple):
    """One side's pages: ``tokens`` in each, and the rank's place among those that take turns with the pages."""

    tokens: int
    cp_rank: int = 0
    cp_size: int = 1

    def __str__(self) -> str:
        turns = f", every {self.cp_size}-th from the {self.cp_rank}-th on" if self.cp_size > 1 else ""
        return f"{self.tokens} tokens each{turns}"

    def first(self, begin: int) -> int:
        """Position of this rank's first page that holds token ``begin`` or a later one, in pages from the prompt's start."""
        page = begin // self.tokens
        return page + (self.cp_rank - page) % self.cp_size

    def pages(self, items: U64, begin: int, start: int = 0) -> Pages:
        """These pages as they stand in the prompt: ``start`` is how many of this rank's pages, from token ``begin`` on, are
        before them.
        """
        return Pages(items, self.first(begin) + start * self.cp_size, self.cp_size)

    def lengths(self, count: int, begin: int) -> tuple[int, int]:
        """For which lengths of a prompt, in tokens, this rank has ``count`` pages from token ``begin`` on: more than the
        first number, and at most the second.
        """
        first = self.first(begin)
        if not count:
            return -1, first * self.tokens
        last = first + (count - 1) * self.cp_size
        return last * self.tokens, (last + self.cp_size) * self.tokens


class Placement(NamedTuple):
    """How prefill's and decode's pages relate. A prefix is counted in decode's pages, as decode names it."""

    prefill: PageSide
    decode: PageSide

    def prefix_pages(self, prefix: int) -> int:
        """How many of prefill's pages decode has whole, if it has ``prefix`` of its own."""
        return prefix * self.decode.tokens // self.prefill.tokens

    def mismatch(self, announced: int, named: int, prefix: int) -> str:
        """Why so many pages of prefill's rank and so many of decode's can't be of one prompt; empty if they can."""
        begin = prefix * self.decode.tokens
        mine, theirs = self.prefill.lengths(announced, begin), self.decode.lengths(named, begin)
        if max(mine[0], theirs[0]) < min(mine[1], theirs[1]):
            return ""
        sides = "pages" if self.prefill == self.decode else f"pages ({self.prefill})"
        other = str(named) if self.prefill == self.decode else f"{named} ({self.decode})"
        return (
            f"prefill announced {announced} {sides}, decode named {other} (its decode_prefix_len is {prefix}): init() takes "
            "the pages after the prefix"
        )

    def chunk(self, start: int, prefill: U64, decode: U64, prefix: int) -> tuple[Pages, Pages]:
        """Pages of a chunk that begins at prefill's ``start``-th page after the prefix, and all that decode named.

        Raises ``ValueError`` if there is a page for which none was named.
        """
        if self.prefill == self.decode and start + prefill.size > decode.size:
            raise ValueError(f"pages {start} to {start + prefill.size}, but decode named {decode.size}")
        begin = prefix * self.decode.tokens
        return self.prefill.pages(prefill, begin, start), self.decode.pages(decode, begin)
