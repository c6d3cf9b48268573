"""The quick part of the conformance suite; `make conformance` runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.conformance import gate_report, need_engine, outcomes


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_the_gate_of_the_conformance_suite(tmp_path: Path) -> None:
    need_engine("nixl")
    found = outcomes(gate_report("nixl", tmp_path))
    assert len(found["passed"]) > 50
    assert set(found) <= {"passed", "refused", "not_run"}, {k: v for k, v in found.items() if k != "passed"}
