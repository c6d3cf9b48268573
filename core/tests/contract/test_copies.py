"""Copies cut to a greatest length: every byte stays where it was."""

from __future__ import annotations

import random

import numpy as np

from kv_core.contract.transport import CopyList

LONGEST = 1_000


def moved(copies: CopyList) -> list[tuple[int, int, int, int]]:
    """Every byte: from which region and offset to which."""
    rows = zip(*(array.tolist() for array in copies), strict=True)
    return [(a, b + n, c, d + n) for a, b, c, d, length in rows for n in range(length)]


def test_long_copies_are_cut_and_every_byte_stays() -> None:
    seed = random.randrange(2**32)
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 5 * LONGEST, 50).astype(np.uint64)
    length[:3] = LONGEST, LONGEST + 1, 2 * LONGEST
    regions = rng.integers(0, 4, (2, 50)).astype(np.uint64)
    offsets = rng.integers(0, 2**62, (2, 50)).astype(np.uint64) + np.uint64(2**63)
    whole = CopyList(regions[0], offsets[0], regions[1], offsets[1], length)
    parts = whole.cut(LONGEST)
    assert int(parts.length.max()) <= LONGEST, seed
    assert int(parts.length.min()) > 0, seed
    assert moved(parts) == moved(whole), seed
    assert all(array.dtype == np.uint64 for array in parts)


def test_short_ones_stay_as_they_are() -> None:
    ones = np.ones(3, np.uint64)
    copies = CopyList(ones, ones, ones, ones, ones)
    assert copies.cut(1) is copies
