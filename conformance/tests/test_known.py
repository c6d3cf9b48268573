"""The file of known failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from kv_conformance.known import KnownFailure, KnownFailuresError, read_known_failures, refuse_unknown

GOOD = """
["KV-ABORT-2"]
reason = "the engine cannot
cancel"
""".replace('"the engine cannot\ncancel"', '"""the engine cannot\n  cancel"""')


def written(folder: Path, text: str) -> Path:
    path = folder / "known.toml"
    path.write_text(text)
    return path


def test_entries_are_read(tmp_path: Path):
    path = written(tmp_path, GOOD + 'link = "https://example.org/17"\nsince = 2026-08-01\n')
    assert read_known_failures(path) == {
        "KV-ABORT-2": KnownFailure("the engine cannot cancel", "https://example.org/17", "2026-08-01")
    }
    assert read_known_failures(written(tmp_path, "")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD, "link of KV-ABORT-2 is missing"),
        ('["KV-ABORT-2"]\nlink = "x"\n', "reason of KV-ABORT-2 is missing"),
        ('["KV-ABORT-2"]\nreason = " "\nlink = "x"\n', "reason of KV-ABORT-2 is ' '"),
        ('["KV-ABORT-2"]\nreason = 7\nlink = "x"\n', "reason of KV-ABORT-2 is 7: expected a text"),
        (GOOD + 'link = "x"\nowner = "me"\n', "has a field 'owner': expected reason, link, since"),
        ('"KV-ABORT-2" = "broken"\n', "KV-ABORT-2 is 'broken': expected a table"),
        ("[", "is no TOML"),
    ],
)
def test_what_has_no_meaning_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(KnownFailuresError, match="known.toml") as raised:
        read_known_failures(written(tmp_path, text))
    assert message in str(raised.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(KnownFailuresError, match="can't be read"):
        read_known_failures(tmp_path / "nowhere.toml")


def test_a_check_that_does_not_exist_is_refused(tmp_path: Path):
    known = {"KV-ABORT-22": KnownFailure("slow", "x")}
    with pytest.raises(KnownFailuresError, match=r"no check 'KV-ABORT-22'. Did you mean KV-ABORT-2\?"):
        refuse_unknown(tmp_path, known, ["KV-ABORT-2", "KV-MEM-1"])
    refuse_unknown(tmp_path, known, ["KV-ABORT-22"])
