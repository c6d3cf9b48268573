"""A sample of what `make simulate` runs: schedules in which nothing may break, and mutants that must be caught."""

from __future__ import annotations

import ast
import json
import time
from pathlib import Path

import pytest

import kv_core.contract
import kv_core.protocol
from core.tests.simulation.cli import COMMAND, hunt, main, shares, tally
from core.tests.simulation.clock import no_real_clock
from core.tests.simulation.invariants import InvariantBroken
from core.tests.simulation.mutants import MUTANTS
from core.tests.simulation.world import World, run_seed

SAMPLE = 300


def test_a_sample_of_schedules():
    result = tally(range(1_000_000, 1_000_000 + SAMPLE))
    lines = [f"{each.text}\n    repeat with: {COMMAND} --seed {each.seed}" for each in result.broken]
    assert not lines, "\n".join(lines)
    assert result.seeds == SAMPLE
    assert result.succeeded > SAMPLE
    assert len(result.profiles) == 6


@pytest.mark.parametrize(
    "name", ["DoneWhenPosted", "ReleasesOnAbort", "NeverQuiesces", "NoTransferDeadline", "LastCauseWins"]
)
def test_a_sample_of_mutants_is_caught(name: str):
    catch = hunt(name, limit=200)
    assert catch.schedules, f"{name} was not caught in 200 schedules"


def test_every_invariant_has_its_mutants():
    targets = {mutant.invariant for mutant in MUTANTS}
    assert {target[:2] for target in targets} == {f"I{i}" for i in range(1, 9)}
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 10


def test_a_schedule_follows_from_its_seed():
    first, second = (run_seed(4711, traced=True) for _ in range(2))
    assert first.events == second.events
    assert first.trace == second.trace
    assert run_seed(4712).events != first.events


def test_what_breaks_is_shown_with_the_command_that_repeats_it(capsys: pytest.CaptureFixture[str]):
    mutants = {mutant.name: mutant for mutant in MUTANTS}
    catch = hunt("NeverQuiesces", limit=50)
    seed = catch.schedules - 1
    assert run_seed(seed, mutants["NeverQuiesces"].machines).broken == catch.invariant
    assert main(["--seed", str(seed), "--mutant", "NeverQuiesces", "--last", "5"]) == 1
    assert catch.text in capsys.readouterr().out
    assert main(["--seed", str(seed)]) == 0


def test_a_machine_that_looks_at_a_clock_is_caught(monkeypatch: pytest.MonkeyPatch):
    world = World(1)
    monkeypatch.setattr(world.engine, "schedule", lambda request, base: time.monotonic())
    with no_real_clock(), pytest.raises(AssertionError, match="real clock"):
        world.run()


@pytest.mark.parametrize("package", [kv_core.protocol, kv_core.contract], ids=lambda package: package.__name__)
def test_what_is_simulated_imports_no_clock(package: object):
    for path in Path(str(package.__file__)).parent.glob("*.py"):  # type: ignore[attr-defined]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"time", "datetime", "random", "threading"}, path


def test_the_command_line_counts_and_says_so_as_json(capsys: pytest.CaptureFixture[str]):
    options = [
        "--seeds",
        "30",
        "--start",
        "7000",
        "--workers",
        "1",
        "--mutants",
        "--mutant",
        "ReleasesOnAbort",
        "--json",
    ]
    assert main(options) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["schedules"], result["broken"]) == (30, [])
    assert result["rooms"] > result["succeeded"] > 30
    (catch,) = result["mutants"]
    assert (catch["name"], catch["caught_by"]) == ("ReleasesOnAbort", "I3 release")
    assert 0 < catch["schedules"] < 100


def test_an_invariant_names_itself():
    world = World(1)
    with pytest.raises(InvariantBroken, match="I5 time: too slow") as caught:
        world.referee.broken("I5 time", "too slow")
    assert caught.value.invariant == "I5 time"


def test_the_seeds_are_shared_out_once_each():
    assert [seed for share in shares(7, 1_234) for seed in share] == list(range(7, 1_241))
