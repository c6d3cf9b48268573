"""A short run of the soak, the fuzz and the black holes, so that `make test` knows that they work and what they find."""

from __future__ import annotations

import pytest

from tests.long import black_holes, fuzz, soak
from tests.support import command_line

WAYS = [
    "success: digests", "duplicate: prefill", "duplicate: decode", "abort: prefill, moving", "abort: prefill, confirming",
    "abort: decode, open", "abort: decode, offered", "abort: decode, verifying", "clear: decode, live", "transport error",
    "invalid: prefill's pages", "invalid: decode's count", "invalid: number", "handshake refused",
    "timeout: nothing arrives", "peer lost: prefill",
]  # fmt: skip
"""One of each kind: the others differ from these in a phase or a side, and wait for a deadline that these don't."""


@pytest.mark.parametrize("way", WAYS)
def test_a_soak(way: str):
    seed = command_line.chosen_seed(None)
    row, violations = soak.one_way(way, 200, seed)
    assert not violations, f"{violations}\nto repeat: {soak.repeat(200, seed, [way])}"
    assert row["rooms"] == 200


def test_a_fuzz():
    seed = command_line.chosen_seed(None)
    rows, violations = fuzz.run(1_000, seed)
    assert not violations, f"{violations}\nto repeat: {fuzz.repeat(1_000, seed)}"
    assert rows[-1]["good rooms"] > 0
    assert all(sum(row["sent"].values()) >= 1_000 for row in rows[:-1])


def test_black_holes():
    seed = command_line.chosen_seed(None)
    rows, violations = black_holes.run(12, seed, probe_interval_s=0.25, slack_s=5.0)
    assert not violations, f"{violations}\nto repeat: {black_holes.repeat(12, seed)}"
    assert {row["lost"] for row in rows} > {"killed", "frozen"}
