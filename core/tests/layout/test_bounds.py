"""Indices are checked before they address anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from core.tests.layout.support import gate
from kv_core.layout import check_indices

INTEGERS = hnp.integer_dtypes() | hnp.unsigned_integer_dtypes()


@gate(300)
@given(hnp.arrays(INTEGERS, st.integers(0, 12)), st.integers(1, 2**64))
def test_all_within_or_the_first_that_is_not(items, num_items):
    outside = [(at, value) for at, value in enumerate(items.tolist()) if not 0 <= value < num_items]
    if not outside:
        checked = check_indices(items, num_items)
        assert checked.dtype == np.dtype(np.uint64)
        assert checked.dtype.isnative
        assert checked.tolist() == items.tolist()
        return
    with pytest.raises(ValueError, match="outside") as caught:
        check_indices(items, num_items, "kv_indices")
    at, value = outside[0]
    assert str(caught.value) == f"kv_indices: index {value} at position {at} is outside 0..{num_items - 1}"


def test_what_is_no_array_of_indices():
    wrong: list[tuple[Any, str]] = [
        (np.zeros((2, 2), np.int32), r"one dimension, got shape \(2, 2\)"),
        (np.int64(3), r"got shape \(\)"),
        (np.array([1.0]), "got dtype float64"),
        (np.array([True]), "got dtype bool"),
        (np.array(["1"]), "got dtype <U1"),
        ([1, None], "got dtype object"),
        ([2**70], "got dtype object"),
    ]
    for items, sentence in wrong:
        with pytest.raises(ValueError, match=sentence):
            check_indices(items, 8)


def test_lists_and_empty_ones_are_fine():
    assert check_indices([3, 1], 8).tolist() == [3, 1]
    none: list[Any] = [[], np.zeros(0), np.zeros(0, np.int32)]
    for empty in none:
        assert check_indices(empty, 8).dtype == np.dtype(np.uint64)


def test_a_good_array_is_not_copied():
    items = np.arange(8, dtype=np.uint64)
    assert check_indices(items, 8) is items


def test_bit_63():
    top = np.array([2**63, 2**64 - 1], np.uint64)
    assert check_indices(top, 2**64) is top
    with pytest.raises(ValueError, match=f"index {2**64 - 1} at position 1"):
        check_indices(top, 2**64 - 1)
