"""Cutting a batch into parts: the same bytes, in order, within the limits."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kv_core.contract.transport import CopyList
from kv_mori.transfer import MAX_CALL_BYTES, cut


def flat(parts):
    """Every byte range as (local region, local offset, remote region, remote offset, length), neighbours joined."""
    joined: list[list[int]] = []
    for part in parts:
        for at, to, size in zip(part.local_offsets, part.remote_offsets, part.sizes, strict=True):
            last = joined[-1] if joined else None
            if (
                last
                and last[:1] + last[2:3] == [part.local, part.remote]
                and (last[1] + last[4], last[3] + last[4]) == (at, to)
            ):
                last[4] += size
            else:
                joined.append([part.local, at, part.remote, to, size])
    return sorted(joined)


@pytest.mark.parametrize("chunks", [(0, 64), (4096, 3)])
@pytest.mark.parametrize("limit", [1, 7, 64, 10_000])
def test_parts_are_within_the_limits_and_nothing_is_lost(limit, chunks):
    seed = random.SystemRandom().randrange(2**32)
    chance = np.random.default_rng(seed)
    count = 500
    regions = chance.integers(0, 5, count), chance.integers(0, 3, count)
    lengths = chance.choice([1, 4096, 4097, 50_000, MAX_CALL_BYTES - 1, MAX_CALL_BYTES, 3 * MAX_CALL_BYTES + 5], count)
    offsets = np.cumsum(lengths + 1) - lengths
    copies = CopyList(*(column.astype(np.uint64) for column in (regions[0], offsets, regions[1], offsets + 7, lengths)))
    parts = list(cut(copies, (list(range(5)), list(range(3))), limit, chunks))
    told = f"seed {seed}"
    for part in parts:
        weights = [min(-(-size // chunks[0]), chunks[1]) if chunks[0] else 1 for size in part.sizes]
        assert part.weight == sum(weights), told
        assert part.weight <= limit or len(part.sizes) == 1, told
        assert sum(part.sizes) <= MAX_CALL_BYTES, told
        assert all(isinstance(value, int) for value in (*part.sizes, *part.local_offsets, *part.remote_offsets))
    wanted = zip(*(column.tolist() for column in copies), strict=True)
    assert flat(parts) == sorted(map(list, wanted)), told
    pairs = [(part.local, part.remote) for part in parts]
    assert pairs == sorted(pairs), told
