"""The results file: whole lines, one run, and what they add up to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kv_conformance.catalog import Check, Level
from kv_conformance.outcomes import Outcome
from kv_conformance.results import Reader, Results, Writer, WrongResults, ids_of, key_of

NODE = "../site-packages/kv_conformance/suite/test_poll.py::test_sticky"
CHECK = Check("KV-POLL-1", Level.MUST, "It sticks.", "look.", where="kv_conformance.suite.test_poll:test_sticky")
ENDED = {"check": "KV-POLL-1", "outcome": "passed", "detail": "", "longrepr": "", "duration_s": 1.5, "fabrics": ["tcp"],
         "notes": []}  # fmt: skip


def test_a_reader_follows_the_writer(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    reader = Reader(path, "r1")
    assert list(reader.records()) == []
    writer = Writer(path, "r1")
    writer.write("begun", node="a\nb")
    assert list(reader.records()) == [{"kind": "begun", "run": "r1", "node": "a\nb"}]
    with path.open("a") as file:
        file.write('{"kind": "finished", "run"')
    assert list(reader.records()) == [], "a line is read once it is whole"
    with path.open("a") as file:
        file.write(': "r1", "status": 0}\n')
    assert [record["kind"] for record in reader.records()] == ["finished"]
    writer.close()
    writer.write("begun", node="c")
    assert list(reader.records()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "a line that is no JSON"),
        ("[]", "no record of kv-conformance"),
        ('{"kind": "other", "run": "r1"}', "no record of kv-conformance"),
        ('{"kind": "begun", "node": "x"}', "a record of run None, expected run 'r1'"),
        ('{"kind": "begun", "node": "x", "run": "r2"}', "a record of run 'r2', expected run 'r1'"),
    ],
)
def test_what_is_not_this_runs_is_refused(tmp_path: Path, line: str, message: str):
    path = tmp_path / "results.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(WrongResults, match="results.jsonl") as raised:
        list(Reader(path, "r1").records())
    assert message in str(raised.value)


def test_records_add_up():
    results, ids = Results(), ids_of([CHECK])
    assert ids == {"test_poll:test_sticky": "KV-POLL-1"}
    assert key_of(NODE) in ids
    results.take({"kind": "session", "subject": {"backend": "good"}}, ids)
    assert results.take({"kind": "begun", "node": NODE}, ids) == ""
    assert results.open == {NODE: "KV-POLL-1"}
    assert results.take({"kind": "ended", "node": NODE, **ENDED}, ids) == "KV-POLL-1"
    assert (results.open, results.ended["KV-POLL-1"].outcome, results.finished) == ({}, Outcome.PASSED, False)
    results.take({"kind": "finished", "status": 0}, ids)
    assert results.finished
    assert results.subject == {"backend": "good"}


def test_a_test_that_is_no_check_is_left_alone():
    results = Results()
    for record in ({"kind": "begun"}, {"kind": "died", "detail": "gone"}):
        assert results.take({**record, "node": "tests/test_own.py::test_poll"}, ids_of([CHECK])) == ""
    assert results == Results()


def test_a_worker_that_died_fails_its_check():
    results = Results()
    results.take({"kind": "begun", "node": NODE}, ids_of([CHECK]))
    results.take({"kind": "died", "node": NODE, "detail": "worker 'gw0' crashed"}, ids_of([CHECK]))
    assert results.open == {}
    assert results.ended["KV-POLL-1"].outcome is Outcome.FAILED
    assert results.ended["KV-POLL-1"].detail == "the process died in this check: worker 'gw0' crashed"


def test_a_check_that_ends_twice_is_no_answer():
    results = Results()
    results.take({"kind": "ended", "node": NODE, **ENDED, "outcome": "failed"}, {})
    results.take({"kind": "ended", "node": NODE, **ENDED}, {})
    assert results.ended["KV-POLL-1"].outcome is Outcome.HARNESS_ERROR
    assert "ran more than once (failed, then passed)" in results.ended["KV-POLL-1"].detail


def test_a_line_is_one_write(tmp_path: Path):
    writer = Writer(tmp_path / "x", "r1")
    writer.write("ended", detail="ü" * 10)
    writer.close()
    assert json.loads((tmp_path / "x").read_bytes().decode("ascii"))["detail"] == "ü" * 10
