"""A room ends when pages x layers are covered, and not before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.tests.layout.support import gate
from kv_core.layout import Coverage


def test_whole_chunks():
    coverage = Coverage(10, [0, 1, 2])
    assert [coverage.advance(n) for n in (4, 0, 5)] == [0, 4, 4]
    assert not coverage.complete
    assert coverage.advance(1) == 9
    assert coverage.complete


def test_layer_by_layer():
    coverage = Coverage(10, [3, 4, 5])
    assert coverage.advance(4, range(3, 4)) == 0
    assert coverage.advance(4, range(4, 9)) == 0
    assert coverage.advance(6) == 4  # all layers stand at 4 again
    assert coverage.complete


def test_layers_may_be_at_different_pages():
    coverage = Coverage(4, [0, 1])
    assert coverage.advance(4, range(1)) == 0
    with pytest.raises(ValueError, match="layer 1 stands at 0 and layer 0 at 4: send the lagging layers first"):
        coverage.advance(1)
    assert coverage.advance(1, range(1, 2)) == 0
    assert coverage.advance(3, range(1, 2)) == 1
    assert coverage.complete


def test_a_room_without_pages_is_complete_after_one_chunk():
    coverage = Coverage(0, [0, 1])
    assert not coverage.complete
    assert coverage.advance(0) == 0
    assert coverage.complete
    by_layer = Coverage(0, [0, 1])
    assert by_layer.advance(0, range(1)) == 0
    assert by_layer.complete


def test_a_range_may_reach_beyond_the_layers_that_are_here():
    coverage = Coverage(2, [4, 8])
    assert coverage.advance(2, range(6)) == 0
    assert coverage.advance(0, range(5, 8)) == 0
    with pytest.raises(ValueError, match="a chunk of 1 pages names none of this rank's layers, 4 to 8"):
        coverage.advance(1, range(5, 8))
    assert coverage.advance(2, range(6, 100)) == 0
    assert coverage.complete


def test_what_is_refused_changes_nothing():
    coverage = Coverage(3, [0, 1])
    coverage.advance(2)
    for n, layers, sentence in (
        (2, None, "a chunk of 2 pages at page 2 goes beyond the 3 pages that were announced"),
        (2, range(1), "goes beyond the 3 pages"),
        (-1, None, "can't have -1 pages"),
        (1, range(0, 2, 2), "step 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            coverage.advance(n, layers)
    assert not coverage.complete
    assert coverage.advance(1) == 2
    assert coverage.complete
    with pytest.raises(ValueError, match="goes beyond"):
        coverage.advance(1)
    assert coverage.complete


def test_what_can_not_be_counted():
    with pytest.raises(ValueError, match="can't have -1 pages"):
        Coverage(-1, [0])
    for layers in ([], [1, 1]):
        with pytest.raises(ValueError, match="layers must be distinct numbers, at least one"):
            Coverage(1, layers)


RANGES = st.none() | st.builds(range, st.integers(-2, 6), st.integers(-2, 6))


@gate(300)
@given(
    st.integers(0, 6),
    st.lists(st.integers(-1, 5), min_size=1, max_size=5, unique=True),
    st.lists(st.tuples(st.integers(0, 4), RANGES), max_size=25),
)
def test_against_a_cursor_for_each_layer(pages, layers, chunks):
    coverage = Coverage(pages, layers)
    cursors = dict.fromkeys(layers, 0)
    begun = False
    for n, named in chunks:
        chosen = [layer for layer in layers if named is None or layer in named]
        at = {cursors[layer] for layer in chosen}
        if n and (len(at) != 1 or max(at) + n > pages):
            with pytest.raises(ValueError, match=r"pages|layers"):
                coverage.advance(n, named)
        else:
            assert coverage.advance(n, named) == min(at, default=0)
            cursors.update({layer: cursors[layer] + n for layer in chosen})
            begun = True
        assert coverage.complete == (begun and set(cursors.values()) == {pages})
