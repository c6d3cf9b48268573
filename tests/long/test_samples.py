"""A short run of each long test, so that `make test` knows that they work and what they find."""

from __future__ import annotations

import pytest

from tests.long import kill_rounds
from tests.support import command_line


@pytest.mark.parametrize("kind", kill_rounds.KINDS)
def test_a_kill_and_a_restart(kind: str):
    seed = command_line.chosen_seed(None)
    [tally] = kill_rounds.run(1, seed, limit_s=5.0, kinds=(kind,), concurrency=8)
    command = command_line.repeat("tests.long.kill_rounds", seed, "--rounds 1")
    assert not tally.violations, f"{tally.violations}\nto repeat: {command}"
    assert tally.rounds == 1
    assert tally.good > 0
