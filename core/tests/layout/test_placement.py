"""Where pages stand in a prompt, against counting tokens one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from kv_core.layout import PageSide, Placement

SIDES = [PageSide(tokens, rank, size) for tokens in (1, 2, 3, 4, 8) for size in (1, 2, 3) for rank in range(size)]


def own_pages(side: PageSide, length: int, begin: int) -> list[int]:
    """Positions of the pages that a rank has of a prompt from token ``begin`` on."""
    pages = range(begin // side.tokens, -(-length // side.tokens))
    return [page for page in pages if page % side.cp_size == side.cp_rank]


@pytest.mark.parametrize("side", SIDES, ids=str)
def test_positions_and_lengths(side: PageSide):
    for length, begin in product(range(25), range(0, 25, 2)):
        if begin > length:
            continue
        mine = own_pages(side, length, begin)
        pages = side.pages(np.arange(len(mine), dtype=np.uint64), begin)
        assert [pages.first + n * pages.step for n in range(len(mine))] == mine
        low, high = side.lengths(len(mine), begin)
        fits = [other for other in range(begin, 60) if len(own_pages(side, other, begin)) == len(mine)]
        assert fits == [other for other in range(begin, 60) if low < other <= high]


@pytest.mark.parametrize("start", [0, 1, 5])
def test_a_chunk_begins_where_the_last_one_ended(start: int):
    side = PageSide(4, 1, 3)
    whole = side.pages(np.arange(9, dtype=np.uint64), 8)
    part = side.pages(np.arange(start, 9, dtype=np.uint64), 8, start)
    assert part.first == whole.first + start * whole.step
    assert part.step == whole.step == 3


PAIRS = [(2, 2), (4, 4), (2, 4), (4, 2), (1, 8), (8, 2)]


@pytest.mark.parametrize(("prefill", "decode"), PAIRS)
@pytest.mark.parametrize(("prefill_cp", "decode_cp"), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_numbers_of_pages_fit_exactly_if_some_prompt_has_them(
    prefill: int, decode: int, prefill_cp: int, decode_cp: int
):
    for one, other in product(range(prefill_cp), range(decode_cp)):
        sides = PageSide(prefill, one, prefill_cp), PageSide(decode, other, decode_cp)
        placement = Placement(*sides)
        for prefix in range(4):
            begin = prefix * decode
            real = {
                (len(own_pages(sides[0], length, begin)), len(own_pages(sides[1], length, begin)))
                for length in range(begin, 80)
            } | {(0, 0)}  # decode has it all: prefill need not send the page in which the prefix ends again
            for counts in product(range(6), repeat=2):
                assert (not placement.mismatch(counts[0], counts[1], prefix)) == (counts in real), (
                    sides,
                    prefix,
                    counts,
                )


def test_a_prefix_is_counted_in_decodes_pages():
    assert Placement(PageSide(4), PageSide(2)).prefix_pages(5) == 2
    assert Placement(PageSide(2), PageSide(4)).prefix_pages(5) == 10
    assert Placement(PageSide(16), PageSide(16)).prefix_pages(5) == 5


def test_what_does_not_fit_is_told_with_both_sides():
    equal = Placement(PageSide(16), PageSide(16)).mismatch(3, 4, 1)
    assert equal.startswith("prefill announced 3 pages, decode named 4 (its decode_prefix_len is 1)")
    unequal = Placement(PageSide(16, 1, 2), PageSide(32)).mismatch(3, 9, 0)
    assert "3 pages (16 tokens each, every 2-th from the 1-th on)" in unequal
    assert "named 9 (32 tokens each)" in unequal


def test_a_page_that_nobody_named_is_refused_where_all_must_be():
    pages = np.arange(3, dtype=np.uint64)
    with pytest.raises(ValueError, match="pages 1 to 4, but decode named 3"):
        Placement(PageSide(16), PageSide(16)).chunk(1, pages, pages, 0)
    mine, theirs = Placement(PageSide(16), PageSide(8)).chunk(1, pages, pages, 4)
    assert (mine.first, theirs.first) == (3, 4)
