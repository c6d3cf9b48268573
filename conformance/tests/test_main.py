"""The command: its lists, and what it refuses before anything runs."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from kv_conformance.__main__ import main
from kv_conformance.catalog import all_checks


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_console_script_is_the_command():
    [script] = entry_points(group="console_scripts", name="kv-conformance")
    assert script.load() is main


def test_the_list(capsys: pytest.CaptureFixture[str]):
    ids = [check.id for check in all_checks()]
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ids
    assert main(["--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == ids
    assert set(rows[0]) == {"id", "level", "requires", "sentence"}
    assert main(["--list", "--markdown"]) == 0
    page = capsys.readouterr().out
    assert all(f"**{one}**" in page for one in ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "no backend named 'nobody' is installed"),
        (["fake", "--only", "KV-XFER-999"], "--only KV-XFER-999: there is no such check or area"),
        (["fake", "--only", "XFER"], "--only XFER: there is no such check or area"),
        (["fake", "--known-failures", "nowhere.toml"], "nowhere.toml can't be read"),
        (["fake", "--report", "/proc/nowhere"], "--report /proc/nowhere: the folder can't be used"),
    ],
)
def test_what_can_not_be_done_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_installed_backends_are_named(capsys: pytest.CaptureFixture[str]):
    assert main(["fakee"]) == 2
    assert "installed are: fake" in capsys.readouterr().err


def test_a_known_failures_file_lies_where_one_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "kv-known-failures.toml").write_text('["KV-NOPE-1"]\nreason = "x"\nlink = "y"\n')
    assert main(["fake"]) == 2
    assert "kv-known-failures.toml: there is no check 'KV-NOPE-1'" in capsys.readouterr().err
    (tmp_path / "kv-known-failures.toml").write_text('["KV-XFER-1"]\nreason = "x"\n')
    assert main(["fake"]) == 2
    assert "link of KV-XFER-1 is missing" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["fake", "--seed", "-1"], ["fake", "--accept", "failed"], ["fake", "--gat"]])
def test_bad_options_end_with_the_usage(arguments: list[str]):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2


def test_a_disabled_backend_is_not_tested(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KV_CORE_DISABLED_PLUGINS", "fake")
    assert main(["fake"]) == 2
    assert "disabled by KV_CORE_DISABLED_PLUGINS" in capsys.readouterr().err


def test_a_suite_without_a_set_is_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kv_conformance.requirements.FOLDER", Path("/nowhere"))
    assert main(["fake"]) == 4
    assert "without it nobody knows what is scored" in capsys.readouterr().err


def test_whatever_breaks_the_suite_is_no_failure_of_the_backend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def broken(_package: str) -> None:
        raise ImportError("no module named hypothesis")

    monkeypatch.setattr("kv_conformance.driver.all_checks", broken)
    assert main(["fake"]) == 4
    told = capsys.readouterr().err
    assert "nothing is known" in told
    assert "no module named hypothesis" in told
