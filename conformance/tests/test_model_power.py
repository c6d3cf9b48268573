"""The state machines find what they are there for, with the gate's budget. More: ``python -m conformance.tests.model_power``."""

from __future__ import annotations

import pytest

from conformance.tests.model_power import pairs, try_one
from kv_conformance.catalog import all_checks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("check", ["KV-MODEL-1", "KV-MODEL-2"])
def test_a_good_backend_passes(check: str) -> None:
    ran = try_one("reference", check, 1)
    assert ran.outcomes == {check: "passed"}, ran.details


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("stale_life", "KV-MODEL-2"),
        ("cross_room_seldom", "KV-MODEL-1"),
        ("metric_of_the_former_life", "KV-MODEL-1"),
        ("poll_of_the_next_life", "KV-MODEL-1"),
    ],
)
def test_a_broken_one_is_caught_and_its_history_told(name: str, check: str) -> None:
    ran = try_one(name, check, 1)
    assert ran.outcomes == {check: "failed"}
    assert "of a history (seed 1)" in ran.details[check]


def test_every_mutant_names_a_check_that_there_is() -> None:
    known = {one.id for one in all_checks()}
    assert {check for _, check in pairs(())} <= known
