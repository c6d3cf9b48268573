"""Every outcome, through the real command, under a bare and under a hostile pytest configuration of the author's."""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from conformance.tests.driver_support import Stranger, detail_of, outcomes_of, report_in, stranger

SUITE = {
    "test_transfer": '''
        @check("KV-XFER-1", engine=False)
        def test_passes(env):
            """It passes."""
            assert env.backend == "good"
            assert env.seed == 5

        @check("KV-XFER-2")
        def test_fails(env):
            """It fails."""
            assert 2 + 2 == 5, "two and two\\nis not\\nfive"

        @check("KV-XFER-3", level=Level.SHOULD)
        def test_should(env):
            """It fails and only should not."""
            raise ValueError("it might have")

        @check("KV-XFER-4", reaches=("far", "farther"))
        def test_reaches(env):
            """It gets everywhere."""
            env.reached("far")
            env.reached("farther")

        @check("KV-XFER-5", reaches=("far", "farther"))
        def test_does_not_reach(env):
            """It gets not so far."""
            env.reached("far")

        @check("KV-XFER-6", gate=False)
        def test_slow(env):
            """It takes longer than a foreign limit of a second, and may."""
            time.sleep(1.3)

        @check("KV-XFER-7", limit_s=0.3)
        def test_too_slow(env):
            """It waits for ever."""
            while True:
                try:
                    time.sleep(30)
                except Exception:
                    pass

        @check("KV-XFER-8")
        def test_unscored(env):
            """It fails and is in no set."""
            raise AssertionError
    ''',
    "test_capabilities": '''
        @check("KV-CAP-1", requires=Capability.WRITE)
        def test_declared(env):
            """It works."""

        @check("KV-CAP-2", requires=Capability.READ)
        def test_refused(env):
            """It is refused."""
            raise NotSupported("reading", "read")

        @check("KV-CAP-3", requires=Capability.FENCE)
        def test_hidden(env):
            """It works and is not declared."""

        @check("KV-CAP-4", requires=Capability.PROBE)
        def test_wrong(env):
            """It is refused wrongly."""
            raise RuntimeError("what?")

        @check("KV-CAP-5", requires=Capability.EMBEDDED)
        def test_declared_and_refused(env):
            """It does not work."""
            raise NotSupported("embedding", "embedded")

        @pytest.fixture
        def refusing(env):
            raise NotSupported("state", "state")

        @check("KV-CAP-6", requires=Capability.STATE)
        def test_refused_early(refusing):
            """It is refused before it begins."""

        @check("KV-CAP-7", requires=Capability.AUX, limit_s=0.3)
        def test_hangs(env):
            """It hangs where it should refuse."""
            time.sleep(30)
    ''',
    "test_ends": '''
        @check("KV-END-1")
        def test_untestable(env):
            """It can not be tested."""
            raise Untestable("there is no second machine")

        @check("KV-END-2")
        def test_harness(env):
            """The harness breaks."""
            raise HarnessError("the harness gave nonsense")

        @check("KV-END-3")
        def test_skips(env):
            """It skips."""
            pytest.skip("no time")

        @check("KV-END-4")
        @pytest.mark.xfail(reason="later")
        def test_xfail(env):
            """It is expected to fail."""
            assert False

        @check("KV-END-5")
        def test_leaves_something(env):
            """It leaves something behind."""
            env.left_behind = "a thread is left"

        @pytest.fixture
        def broken(env):
            raise AssertionError("setup asserts")

        @check("KV-END-6")
        def test_broken_setup(broken):
            """Its setup breaks."""

        @pytest.fixture
        def torn(env):
            yield
            raise OSError("teardown raises")

        @check("KV-END-7")
        def test_broken_teardown(torn):
            """Its teardown breaks."""
    ''',
    "test_known": '''
        @check("KV-FAIL-1")
        def test_known(env):
            """It is known to fail."""
            assert env.harness.patience_s == 31

        @check("KV-FAIL-2")
        def test_stale(env):
            """It was known to fail."""

        @check("KV-FAIL-3")
        def test_known_untestable(env):
            """It is known to fail and can not be tested."""
            raise Untestable("not here")

        @check("KV-FAIL-4")
        def test_known_leak(env):
            """It is known to leave something."""
            env.left_behind = "a descriptor is left"
    ''',
}  # fmt: skip
EXPECTED = {
    "KV-XFER-1": "passed",
    "KV-XFER-2": "failed",
    "KV-XFER-3": "failed",
    "KV-XFER-4": "passed",
    "KV-XFER-5": "untestable",
    "KV-XFER-6": "passed",
    "KV-XFER-7": "failed",
    "KV-XFER-8": "failed",
    "KV-FAIL-1": "known_failure",
    "KV-FAIL-2": "stale",
    "KV-FAIL-3": "untestable",
    "KV-FAIL-4": "known_failure",
    "KV-END-1": "untestable",
    "KV-END-2": "harness_error",
    "KV-END-3": "harness_error",
    "KV-END-4": "harness_error",
    "KV-END-5": "failed",
    "KV-END-6": "harness_error",
    "KV-END-7": "harness_error",
    "KV-CAP-1": "passed",
    "KV-CAP-2": "refused",
    "KV-CAP-3": "failed",
    "KV-CAP-4": "failed",
    "KV-CAP-5": "failed",
    "KV-CAP-6": "refused",
    "KV-CAP-7": "failed",
}
KNOWN = "".join(
    f'["KV-FAIL-{n}"]\nreason = "patience is short"\nlink = "https://example.org/{n}"\nsince = 2026-01-02\n'
    for n in (1, 2, 3, 4)
)
# Everything in it has broken some suite that was run in a repository of somebody else's.
HOSTILE = """
[pytest]
addopts = --strict-markers --strict-config --import-mode=importlib -x -k nothing -m "not slow" --ff {more}
xfail_strict = true
filterwarnings = error
timeout = 1
cache_dir = the-author's-cache
python_files = check_*.py
python_functions = check_*
norecursedirs = suite* kv_*
usefixtures = database
testpaths = tests
"""


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    one = stranger(tmp_path_factory.mktemp("stranger"))
    suite = one.site / one.suite("kv_suite_of_all", **SUITE)
    scored = [check for check in EXPECTED if check != "KV-XFER-8"]
    (suite / "requirements.toml").write_text(
        "".join(f'["{check}"]\nlevel = "MUST"\nsentence = "Something."\n' for check in scored)
    )
    return one


@pytest.fixture(
    scope="module", params=["bare", "hostile", "hostile with xdist", "warnings are errors, without autoload"]
)
def ran(
    request: pytest.FixtureRequest, author: Stranger, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any], Path]:
    home = tmp_path_factory.mktemp("home")
    (home / "kv-known-failures.toml").write_text(KNOWN)
    environment, extra = {}, []
    if "hostile" in request.param:
        (home / "pytest.ini").write_text(HOSTILE.format(more="-n 2" if "xdist" in request.param else ""))
        # Two of one name, which only their import mode keeps apart; pytest reads both, whatever it is to run.
        (home / "tests").mkdir()
        for folder in (home, home / "tests"):
            (folder / "conftest.py").write_text("")
    if "without autoload" in request.param:
        environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        extra = ["--", "-W", "error"]
    done = author.conformance(
        "good", "kv_suite_of_all", "--report", "out", "--seed", "5", *extra, cwd=home, **environment
    )  # fmt: skip
    assert (home / "out" / "report.json").exists(), done.stdout + done.stderr
    assert not (home / "the-author's-cache").exists(), "the suite wrote into the author's folder"
    return done, report_in(home / "out"), home


def test_each_outcome_is_the_same_wherever_the_suite_runs(ran):
    done, report, _ = ran
    assert outcomes_of(report) == EXPECTED
    assert done.returncode == 1, done.stdout
    assert report["verdict"] == "failed"


def test_the_reasons_are_told(ran):
    _, report, _ = ran
    expected: Mapping[str, str] = {
        "KV-XFER-2": "two and two\n  is not\n  five",
        "KV-XFER-3": "ValueError: it might have (test_transfer.py:",
        "KV-XFER-5": "never got to: farther",
        "KV-XFER-7": "did not end within 0.3 s",
        "KV-CAP-2": "reading is not supported",
        "KV-CAP-3": "works, and the capability 'fence' is not declared: declare it, or refuse",
        "KV-CAP-4": "refused with RuntimeError instead of NotSupported: RuntimeError: what? (test_capabilities.py:",
        "KV-CAP-5": "NotSupported: embedding is not supported",
        "KV-CAP-7": "did not end within 0.3 s",
        "KV-END-1": "there is no second machine",
        "KV-END-2": "the harness gave nonsense",
        "KV-END-3": "skip is not an outcome: no time",
        "KV-END-4": "skip is not an outcome",
        "KV-END-5": "a thread is left",
        "KV-END-6": "the check's setup broke: setup asserts",
        "KV-END-7": "the check's teardown broke: OSError: teardown raises",
        "KV-FAIL-1": "patience is short (https://example.org/1). Seen now: assert 30.0 == 31",
        "KV-FAIL-2": "listed as a known failure (patience is short), and it passed",
        "KV-FAIL-4": "Seen now: a descriptor is left",
    }
    for check, text in expected.items():
        assert text in detail_of(report, check), (check, detail_of(report, check))


def test_the_report_has_everything(ran):
    _, report, home = ran
    assert report["schema"] == "kv-conformance/1"
    assert report["claimed"] == ["embedded", "write"]
    assert report["proven"] == ["write"]
    assert report["refused"] == ["read", "state"]
    assert report["deviations"] == ["KV-XFER-3"]
    assert report["not_verified"] == ["KV-XFER-5", "KV-FAIL-3", "KV-END-1"]
    assert report["fabrics"] == ["carrier pigeon"]
    assert report["seed"] == 5
    assert report["backend"]["distribution"] == "kv-subject"
    assert report["distributions"]["acme-engine"] == "1.7"
    assert [one["outcome"] for one in report["known_failures"]] == [
        "known_failure",
        "stale",
        "untestable",
        "known_failure",
    ]
    entry = next(check for check in report["checks"] if check["id"] == "KV-XFER-2")
    assert "assert 2 + 2 == 5" in entry["longrepr"] or "assert (2 + 2) == 5" in entry["longrepr"]
    assert entry["notes"] == ["told of AssertionError"]
    assert [check["id"] for check in report["checks"] if not check["scored"]] == ["KV-XFER-8"]
    records = [json.loads(line) for line in (home / "out" / f"results-{report['run']}.jsonl").read_text().splitlines()]
    assert {record["run"] for record in records} == {report["run"]}


def test_the_screen_and_the_page_tell_what_failed(ran):
    done, _, home = ran
    assert done.stdout.startswith("FAILED: good (kv-subject 2.5)")
    assert "FAILED KV-XFER-2: It fails." in done.stdout
    assert "If this fails, look at it." in done.stdout
    assert "stale" in (home / "out" / "report.md").read_text()


def test_junit_carries_the_ids(ran):
    _, _, home = ran
    properties = [
        {prop.get("name"): prop.get("value") for prop in case.iter("property")}
        for case in ET.parse(home / "out" / "junit.xml").iter("testcase")
    ]
    assert {one["kv_check"]: one["kv_outcome"] for one in properties if "kv_outcome" in one} == EXPECTED
    assert all(one["kv_sentence"] for one in properties)


def test_pytest_itself_shows_the_same(author: Stranger):
    """Without the driver: as one runs it to look for a mistake."""
    (author.home / "known.toml").write_text(KNOWN)
    done = author.call(
        "-m", "pytest", "-p", "kv_conformance", "--pyargs", "kv_suite_of_all", "--kv-suite=kv_suite_of_all",
        "--kv-backend=good", "--kv-seed=5", "--kv-known=known.toml", "-v", "-ra", "--kv-only=KV-CAP", "--kv-only=KV-FAIL",
        "-n", "0",
    )  # fmt: skip
    assert done.returncode == 1
    assert "15 deselected" in done.stdout
    assert "test_refused REFUSED" in done.stdout
    assert "test_refused_early REFUSED" in done.stdout
    assert "untestable: not here" in done.stdout
    assert "test_known XFAIL" in done.stdout
    assert "stale: listed as a known failure" in done.stdout
    assert "works, and the capability 'fence' is not declared" in done.stdout
