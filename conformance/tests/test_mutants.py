"""The mutants that prove the suite: a sample of them, and that what is recorded of all of them hangs together.

The whole matrix: ``python -m conformance.tests.matrix``.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from conformance.tests.matrix.comparing import (
    changes,
    faults,
    read_complete,
    read_recorded,
    reference_faults,
    uncovered,
    write_recorded,
)
from conformance.tests.matrix.pages import page
from conformance.tests.matrix.running import Ran, RunError, _read, run
from conformance.tests.mutants import MUTANTS, Mutant
from conformance.tests.mutants.site import install
from kv_conformance.catalog import Level, all_checks

CHECKS = {check.id: check for check in all_checks()}
# Those whose map has been recorded; `python -m conformance.tests.matrix` names the others.
BROKEN = [mutant for mutant in MUTANTS.values() if mutant.name in read_recorded()]
SAMPLE = 3
QUICK_AREAS = ("ID", "MEM", "PEER", "XFER", "MET", "CLEAR", "FAIL")
"""Areas whose checks are quick, and need no process that stands still."""


def mutant(name: str = "m", caught_by: str = "KV-A-1", **more: object) -> Mutant:
    return Mutant(name, "Nothing is true.", caught_by, MUTANTS["reference"].record, **more)  # type: ignore[arg-type]


def ran(**outcomes: str) -> Ran:
    by_check = {f"KV-A-{name[1:]}": outcome for name, outcome in outcomes.items()}
    return Ran("m", by_check, dict.fromkeys(by_check, "because"), 1.0)


# -- a sample, run as a stranger runs the suite ----------------------------------------------------------------------------


def test_a_sample_of_mutants_is_caught_and_the_reference_is_not():
    seed = int(os.environ.get("KV_MUTANTS_SEED", random.SystemRandom().randrange(10**6)))
    quick = [one for one in BROKEN if one.like == "reference" and one.caught_by.split("-")[1] in QUICK_AREAS]
    chosen = random.Random(seed).sample(quick, SAMPLE)
    print(f"seed {seed}: {', '.join(one.name for one in chosen)}; again with KV_MUTANTS_SEED={seed}")
    reference = run(MUTANTS["reference"], only=sorted({one.caught_by for one in chosen}))
    assert not reference_faults(reference)
    for one in chosen:
        seen = run(one, only=[one.caught_by])
        assert not faults(one, seen, reference, read_recorded()[one.name])


# -- what is recorded ------------------------------------------------------------------------------------------------------


def test_each_mutant_names_a_check_that_there_is():
    assert [one.name for one in BROKEN if one.caught_by not in CHECKS] == []


def test_each_must_check_is_failed_by_a_mutant():
    musts = [check.id for check in CHECKS.values() if check.level is Level.MUST]
    assert uncovered(musts, read_recorded(), MUTANTS) == []


def test_the_recorded_maps_are_of_the_mutants_and_checks_that_there_are():
    recorded = read_recorded()
    assert list(recorded) == [one.name for one in BROKEN]
    assert len(recorded) >= 140
    assert {check for one in recorded.values() for check in one} <= set(CHECKS)
    assert [one.name for one in BROKEN if recorded[one.name].get(one.caught_by) != "failed"] == []


def test_the_named_check_always_fails():
    assert [one.name for one in BROKEN if one.caught_by in one.sometimes] == []
    assert [one.name for one in BROKEN if not all(one.sometimes.values())] == []


def test_the_page_shows_every_mutant_and_every_check():
    text = page(BROKEN, read_recorded(), list(CHECKS.values()), read_complete())
    assert text.count("| complete |") == len(read_complete())
    assert all(f"| `{one.name}` | {one.breaks} |" in text for one in BROKEN)
    assert all(f"| {check} |" in text for check in CHECKS)
    assert "(none)" not in text


# -- comparing -------------------------------------------------------------------------------------------------------------


def test_what_differs_from_the_reference_is_what_counts():
    seen = changes(ran(c1="failed", c2="passed", c3="untestable"), ran(c1="passed", c2="passed", c3="passed"))
    assert seen == {"KV-A-1": "failed", "KV-A-3": "untestable"}


@pytest.mark.parametrize("outcome", ["passed", "untestable", "refused", "harness_error"])
def test_a_mutant_survives_unless_its_named_check_failed(outcome: str):
    found = faults(mutant(), ran(c1=outcome), ran(c1="passed"), None)
    assert "survived" in found[0]


def test_a_mutant_must_change_what_is_recorded_and_nothing_else():
    reference = ran(c1="passed", c2="passed", c3="passed")
    seen = ran(c1="failed", c2="failed", c3="passed")
    assert faults(mutant(), seen, reference, {"KV-A-1": "failed", "KV-A-2": "failed"}) == []
    assert "KV-A-2 is failed" in faults(mutant(), seen, reference, {"KV-A-1": "failed"})[0]
    assert "KV-A-3 is passed" in faults(mutant(), seen, reference, dict.fromkeys(seen.outcomes, "failed"))[0]


def test_what_is_racy_may_differ_and_what_was_not_run_says_nothing():
    one = mutant(sometimes={"KV-A-2": "a race"})
    recorded = {"KV-A-1": "failed", "KV-A-9": "failed"}
    for outcome in ("passed", "failed"):
        assert faults(one, ran(c1="failed", c2=outcome), ran(c1="passed", c2="passed"), recorded) == []


def test_a_reference_must_be_all_green():
    assert reference_faults(ran(c1="passed", c2="refused")) == []
    assert len(reference_faults(ran(c1="passed", c2="untestable", c3="failed"))) == 2


def test_a_check_is_covered_by_failures_only_and_not_by_racy_ones():
    recorded = {"a": {"KV-A-1": "failed", "KV-A-2": "untestable", "KV-A-3": "failed"}, "gone": {"KV-A-4": "failed"}}
    mutants = {"a": mutant("a", sometimes={"KV-A-3": "a race"})}
    assert uncovered(["KV-A-1", "KV-A-2", "KV-A-3", "KV-A-4"], recorded, mutants) == ["KV-A-2", "KV-A-3", "KV-A-4"]


def test_recorded_maps_are_read_as_they_were_written(tmp_path: Path):
    maps = {"a": {"KV-A-2": "failed", "KV-A-1": "failed", "KV-A-3": "untestable"}, "b": {"KV-A-1": "failed"}}
    write_recorded(maps, ["KV-A-1", "KV-A-2", "KV-A-3"], {"b"}, tmp_path / "maps.toml")
    assert read_recorded(tmp_path / "maps.toml") == maps
    assert read_complete(tmp_path / "maps.toml") == {"b"}
    assert '"KV-A-1", "KV-A-2"' in (tmp_path / "maps.toml").read_text()


# -- believing -------------------------------------------------------------------------------------------------------------


def told(folder: Path, **changed: object) -> Path:
    """A report and its results, as the driver leaves them."""
    report = {"command": ["python", "-m", "kv_conformance", "m"], "run": "r1", "verdict": "failed", "reasons": []}
    (folder / "report.json").write_text(json.dumps(report | changed))
    session = {"kind": "session", "run": "r1", "subject": {"backend": changed.get("tested", "m")}}
    (folder / "results-r1.jsonl").write_text(json.dumps(session) + "\n")
    return folder / "report.json"


def ended(status: int) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], status, "", "")


def test_a_report_of_this_run_is_believed(tmp_path: Path):
    assert _read(mutant(), told(tmp_path), ["m"], ended(1))["run"] == "r1"


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({}, 0, "verdict failed"),
        ({}, 3, "verdict failed"),
        ({"verdict": "unknown"}, 4, "verdict unknown"),
        ({"verdict": "conformant"}, 1, "verdict conformant"),
        ({"command": ["python", "-m", "kv_conformance", "m", "--gate"]}, 1, "of another run"),
        ({"run": "r2"}, 1, "no results"),
        ({"tested": "another"}, 1, "another backend"),
    ],
)
def test_any_other_report_is_not(tmp_path: Path, changed: dict[str, object], status: int, words: str):
    with pytest.raises(RunError, match=words):
        _read(mutant(), told(tmp_path, **changed), ["m"], ended(status))


def test_no_report_is_no_survival(tmp_path: Path):
    with pytest.raises(RunError, match="no report"):
        _read(mutant(), tmp_path / "report.json", ["m"], ended(1))


def test_a_rival_offers_the_same_name(tmp_path: Path):
    install(MUTANTS["two_of_a_name"], tmp_path)
    offers = [path.read_text() for path in tmp_path.glob("*.dist-info/entry_points.txt")]
    assert len(offers) == 2
    assert all("[kv_core.backends]\ntwo_of_a_name = " in text for text in offers)
