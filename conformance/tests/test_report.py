"""The report and what is made of it: JSON, page, short form, README, screen. All from values, nothing is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kv_conformance import readme
from kv_conformance.catalog import Check, Level
from kv_conformance.harness import Fault
from kv_conformance.known import KnownFailure
from kv_conformance.markdown import catalogue, markdown, summary_markdown
from kv_conformance.outcomes import Outcome
from kv_conformance.report import NO_OUTCOME, SCHEMA, Facts, build
from kv_conformance.report_screen import screen
from kv_conformance.requirements import RequirementSet, as_requirements
from kv_conformance.results import Ended, Results
from kv_core import Capability

CHECKS = [
    Check("KV-MEM-1", Level.MUST, "Memory | is <registered>.", "look at register_memory()."),
    Check("KV-XFER-1", Level.MUST, "Bytes arrive.", "look at submit()."),
    Check("KV-XFER-2", Level.SHOULD, "Bytes arrive soon.", "look at progress().", engine=False, gate=False),
    Check("KV-ABORT-1", Level.MUST, "It cancels.", "look at cancel().", Capability.CANCEL, frozenset({Fault.FREEZE})),
    Check("KV-CAP-1", Level.MUST, "It fences.", "look at fence().", requires=Capability.FENCE),
    Check("KV-CAP-2", Level.MUST, "It is new.", "look.", requires=Capability.FENCE),
]
SET = RequirementSet("0.1", as_requirements(CHECKS[:-1]))
SUBJECT = {
    "backend": "acme", "harness": "kv_acme.conformance:AcmeHarness", "stand_in": "", "missing": [], "settings": {},
    "info": {"name": "acme", "distribution": "kv-acme", "version": "3.1", "api_version": [1, 0], "description": "ACME",
             "capabilities": ["cancel"]},
}  # fmt: skip
FACTS = Facts(
    tested={"suite": "0.1.0", "kv_core": {"version": "0.1.0", "api": [1, 0]}, "backend": "acme",
            "installed": {"distribution": "kv-acme", "version": "3.1"},
            "distributions": {"kv-acme": "3.1", "kv-other": "9", "acme-engine": "7"}, "git_revision": "abc+"},
    place={"python": "3.11.7", "implementation": "CPython", "os": "Debian", "kernel": "Linux 6", "machine": "x86_64", "cpus": 2},
    command=["python", "-m", "kv_conformance", "acme", "--report", "a folder"],
    run="r1", time_utc="2026-08-01T10:00:00+00:00", wall_s=12.34, seed=3, left_out={},
)  # fmt: skip


def made(
    outcomes: dict[str, Ended] | None = None, *, known: dict[str, KnownFailure] | None = None, subject: Any = SUBJECT,
    left_out: dict[str, str] | None = None, troubles: tuple[str, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    ended = {check.id: Ended(Outcome.PASSED, duration_s=0.5, fabrics=("tcp",)) for check in CHECKS}
    ended["KV-CAP-1"] = ended["KV-CAP-2"] = Ended(Outcome.REFUSED, "fencing is not supported")
    ended.update(outcomes or {})
    for check in left_out or {}:
        del ended[check]
    facts = Facts(**{**vars(FACTS), "left_out": left_out or {}, "troubles": troubles})
    report = build(CHECKS, SET, Results(subject, ended), known or {}, facts)
    assert report == json.loads(json.dumps(report)), "JSON keeps all of it"
    return report


def test_a_good_run():
    report = made()
    assert (report["schema"], report["verdict"], report["reasons"]) == (SCHEMA, "conformant", [])
    assert (report["claimed"], report["proven"], report["refused"]) == (["cancel"], ["cancel"], ["fence"])
    assert report["totals"] == {
        "checks": 6, "scored": 5, "passed": 4, "failed": 0, "refused": 2, "known_failure": 0, "stale": 0, "untestable": 0,
        "harness_error": 0, "not_run": 0, "deviations": 0,
    }  # fmt: skip
    assert (report["fabrics"], report["wall_s"], report["seed"], report["run"]) == (["tcp"], 12.3, 3, "r1")
    assert report["backend"]["description"] == "ACME"
    entry = report["checks"][0]
    assert (entry["id"], entry["area"], entry["scored"], entry["duration_s"]) == (
        "KV-MEM-1", "Registering memory", True, 0.5,
    )  # fmt: skip
    assert [check["id"] for check in report["checks"] if not check["scored"]] == ["KV-CAP-2"]


def test_what_has_no_outcome_is_told_apart_from_what_was_left_out():
    report = made(left_out={"KV-MEM-1": "left out by --only"})
    assert report["verdict"] == "partial"
    assert report["checks"][0]["detail"] == "left out by --only"
    lost = build(CHECKS, SET, Results(SUBJECT, {}), {}, FACTS)
    assert lost["verdict"] == "unknown"
    assert lost["checks"][0]["detail"] == NO_OUTCOME


def test_without_a_record_the_metadata_names_the_backend():
    report = made(subject={**SUBJECT, "info": None})
    assert report["backend"] == {"name": "acme", "distribution": "kv-acme", "version": "3.1"}
    assert report["claimed"] == []
    assert "built for API unknown" in markdown(report)
    assert build(CHECKS, SET, Results(), {}, FACTS)["harness"] == ""


def test_a_page():
    known = {"KV-ABORT-1": KnownFailure("the engine | can't", "https://example.org/17", "2026-01-01")}
    report = made(
        {"KV-XFER-1": Ended(Outcome.FAILED, "byte 7 is\nwrong"), "KV-ABORT-1": Ended(Outcome.KNOWN_FAILURE, "known")},
        known=known,
    )
    page = markdown(report)
    assert page.startswith("# FAILED: `acme` (kv-acme 3.1), kv-conformance 0.1.0\n")
    assert "| KV-MEM-1 | MUST | Memory \\| is &lt;registered&gt;. | passed |" in page
    assert "| KV-XFER-1 | MUST | Bytes arrive. | **failed**[^kv-xfer-1] |" in page
    assert "[^kv-xfer-1]: KV-XFER-1: byte 7 is wrong *If this fails,* look at submit()." in page
    assert "*(not scored)*" in page
    assert "| KV-ABORT-1 | the engine \\| can't | https://example.org/17 | 2026-01-01 | known failure |" in page
    assert "pip install acme-engine==7 kv-acme==3.1 kv-conformance==0.1.0 kv-core==0.1.0\n" in page
    assert "python -m kv_conformance acme --report 'a folder'" in page
    assert page.index("## Registering memory") < page.index("## Moving bytes") < page.index("## Reproduce")


def test_the_short_form():
    report = made(
        {"KV-XFER-1": Ended(Outcome.UNTESTABLE, "no device"), "KV-XFER-2": Ended(Outcome.FAILED, "slow")},
        known={"KV-ABORT-1": KnownFailure("can't", "https://example.org/17")},
        subject={**SUBJECT, "missing": ["no device"], "stand_in": "a stand-in"},
    )
    text = summary_markdown(report)
    assert text.startswith(
        "**partial**: kv-conformance 0.1.0 (requirement set 0.1), kv-acme 3.1, kv-core 0.1.0, 2026-08-01."
    )
    assert "6 checks: 2 passed, 1 failed, 2 refused, 1 untestable" in text
    assert "claimed: `cancel`; proven: `cancel`; rightly refused: `fence`" in text
    assert "- Not verified: KV-XFER-1\n" in text
    assert "- Deviates from SHOULD: KV-XFER-2\n" in text
    assert "- Missing here: no device\n" in text
    assert "Ran against a stand-in" in text
    assert "- Known failure KV-ABORT-1: can't (https://example.org/17)" in text


def test_the_list_of_checks():
    page = catalogue(CHECKS)
    assert (
        "## KV-XFER: Moving bytes\n\n**KV-XFER-1** (MUST). Bytes arrive.\n*If this fails,* look at submit().\n" in page
    )
    assert "**KV-XFER-2** (SHOULD; needs no engine; not in the short run)." in page
    assert "**KV-ABORT-1** (MUST; capability `cancel`; faults: `freeze`)." in page


def test_the_screen_groups_what_has_one_reason():
    untestable = Ended(Outcome.UNTESTABLE, "missing here: no device")
    report = made(
        {"KV-MEM-1": untestable, "KV-XFER-1": untestable, "KV-XFER-2": Ended(Outcome.FAILED, "slow\nvery slow")},
        troubles=("pytest ended by itself",),
    )
    text = screen(report, Path("out"))
    assert text.startswith("UNKNOWN: acme (kv-acme 3.1), kv-conformance 0.1.0, requirement set 0.1\n")
    assert "- pytest ended by itself" in text
    assert "untestable (2): KV-MEM-1, KV-XFER-1: missing here: no device" in text
    assert "FAILED KV-XFER-2 (SHOULD): Bytes arrive soon.\n  slow\n  If this fails, look at progress()." in text
    assert "very slow" not in text
    assert "In out: report.json" in text


def test_the_readme_gets_the_short_form(tmp_path: Path):
    page, report = tmp_path / "README.md", tmp_path / "report.json"
    page.write_text(f"# kv-acme\n\n{readme.BEGIN}\nold\n{readme.END}\nMore.\n")
    report.write_text(json.dumps(made()))
    assert readme.main([str(report), str(page), "--check"]) == 1
    assert "old" in page.read_text()
    assert readme.main([str(report), str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"# kv-acme\n\n{readme.BEGIN}\n**conformant**")
    assert text.endswith(f"{readme.END}\nMore.\n")
    assert "old" not in text
    assert readme.main([str(report), str(page), "--check"]) == 0


@pytest.mark.parametrize(
    "text", ["", readme.BEGIN, f"{readme.END}\n{readme.BEGIN}", f"{readme.BEGIN}\n{readme.END}" * 2]
)
def test_a_readme_without_a_place_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str):
    page, report = tmp_path / "README.md", tmp_path / "report.json"
    page.write_text(text)
    report.write_text(json.dumps(made()))
    assert readme.main([str(report), str(page)]) == 2
    assert page.read_text() == text
    assert "README.md: it must have the line" in capsys.readouterr().err


def test_a_report_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page, report = tmp_path / "README.md", tmp_path / "report.json"
    page.write_text(f"{readme.BEGIN}\n{readme.END}")
    report.write_text('{"schema": "other"}')
    assert readme.main([str(report), str(page)]) == 2
    assert "no report of schema kv-conformance/1" in capsys.readouterr().err
