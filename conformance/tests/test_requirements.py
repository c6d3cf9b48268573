"""Requirement sets: what a version scores, and that no check ever changes its meaning under its id."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from kv_conformance.catalog import Check, Level, all_checks
from kv_conformance.requirements import (
    RequirementsError,
    RequirementSet,
    all_sets,
    as_requirements,
    contradictions,
    current_name,
    main,
    read_set,
    set_of,
    write_set,
)
from kv_core import Capability

ONE = Check("KV-MEM-1", Level.MUST, 'It says "so" and \\so.', "look.")
TWO = Check("KV-CAP-1", Level.SHOULD, "Ümlaut.", "look.", requires=Capability.FENCE)


# --- the sets of this distribution ------------------------------------------------------------------------------------


def test_the_suite_keeps_what_every_set_says():
    sets = all_sets()
    assert [one.name for one in sets][-1] == current_name()
    assert contradictions(sets, all_checks()) == []


def test_the_set_of_a_version_that_is_not_released_is_up_to_date():
    if not version("kv-conformance").endswith(".0"):
        pytest.skip("this minor version is released: what was added since is scored by the next one")
    scored = set_of("kv_conformance.suite").requirements
    assert scored == as_requirements(all_checks()), "run python -m kv_conformance.requirements --write"


# --- how they are read, compared and written --------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path):
    path = write_set([ONE, TWO], "0.3", "0.3.0", tmp_path)
    assert path == tmp_path / "0.3.toml"
    assert read_set("0.3", tmp_path) == RequirementSet("0.3", as_requirements([ONE, TWO]))
    write_set([ONE], "0.3", "0.3.0.dev4", tmp_path)
    assert list(read_set("0.3", tmp_path).requirements) == ["KV-MEM-1"], "as long as it is not released"


@pytest.mark.parametrize(
    ("name", "of_version", "message"),
    [
        ("0.2", "0.3.0", "belongs to another version"),
        ("0.4", "0.3.0", "belongs to another version"),
        ("0.3", "0.3.1", "was released with 0.3.0"),
        ("0.3", "0.3.10", "was released with 0.3.0"),
    ],
)
def test_only_the_coming_set_is_written(tmp_path: Path, name: str, of_version: str, message: str):
    with pytest.raises(RequirementsError, match=message):
        write_set([ONE], name, of_version, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_set_is_written_that_contradicts_an_older_one(tmp_path: Path):
    write_set([ONE, TWO], "0.9", "0.9.0", tmp_path)
    changed = Check("KV-MEM-1", Level.SHOULD, "Something else.", "look.")
    with pytest.raises(RequirementsError, match="KV-MEM-1: level is .*\n.*KV-MEM-1: sentence is"):
        write_set([changed, TWO], "0.10", "0.10.0", tmp_path)
    with pytest.raises(RequirementsError, match="KV-CAP-1 of set 0.9 is not in set 0.10"):
        write_set([ONE], "0.10", "0.10.0", tmp_path)
    write_set([ONE, TWO, Check("KV-MEM-2", Level.MUST, "New.", "look.")], "0.10", "0.10.0", tmp_path)
    assert [one.name for one in all_sets(tmp_path)] == ["0.9", "0.10"]


def test_each_contradiction_is_told():
    old = RequirementSet("0.1", as_requirements([ONE, TWO]))
    new = RequirementSet("0.2", as_requirements([ONE]))
    other = Check("KV-CAP-1", Level.SHOULD, "Ümlaut.", "look.", requires=Capability.PROBE)
    assert contradictions([old], [ONE, TWO]) == []
    assert contradictions([old], [ONE]) == ["KV-CAP-1 of set 0.1 is not in the suite"]
    assert contradictions([old, new], [ONE, other]) == [
        "KV-CAP-1 of set 0.1 is not in set 0.2",
        "KV-CAP-1: requires is 'probe', and set 0.1 has 'fence'",
    ]


@pytest.mark.parametrize(
    "text", [None, "[", '["KV-MEM-1"]\nlevel = "MAY"\nsentence = "x"\n', '["KV-MEM-1"]\nlevel = "MUST"\n', "a = 1\n"]
)
def test_a_set_that_can_not_be_read_is_no_set(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "0.1.toml").write_text(text)
    with pytest.raises(RequirementsError, match="0.1.toml"):
        read_set("0.1", tmp_path)


def test_the_command_compares(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    assert "keeps what every set says" in capsys.readouterr().out
