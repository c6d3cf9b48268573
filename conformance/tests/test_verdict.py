"""From outcomes to a verdict: each rule by itself, and which one comes first."""

from __future__ import annotations

import pytest

from kv_conformance.catalog import Level
from kv_conformance.outcomes import Outcome, Verdict
from kv_conformance.verdict import EXIT_STATUS, Judgement, Scored, judge

GOOD = Scored("KV-XFER-1", Level.MUST, Outcome.PASSED)
WRITES = Scored("KV-CAP-1", Level.MUST, Outcome.PASSED, "write")
REFUSES = Scored("KV-CAP-2", Level.MUST, Outcome.REFUSED, "read")


def one(outcome: Outcome, level: Level = Level.MUST, **more) -> Judgement:
    return judge([GOOD, WRITES, REFUSES, Scored("KV-END-1", level, outcome, **more)], ["write"])


def test_all_that_counts_passed():
    judged = judge([GOOD, WRITES, REFUSES], ["write"])
    assert judged == Judgement(Verdict.CONFORMANT, (), ("write",), ("read",), (), ())


@pytest.mark.parametrize(
    ("outcome", "verdict", "reason"),
    [
        (Outcome.FAILED, Verdict.FAILED, "failed (1): KV-END-1"),
        (Outcome.STALE, Verdict.FAILED, "listed as known failures, and not failing (1): KV-END-1"),
        (
            Outcome.HARNESS_ERROR,
            Verdict.UNKNOWN,
            "broken by the suite or the harness, so that nothing is known (1): KV-END-1",
        ),
        (Outcome.NOT_RUN, Verdict.UNKNOWN, "without an outcome (1): KV-END-1"),
        (Outcome.KNOWN_FAILURE, Verdict.PARTIAL, "known failures (1): KV-END-1"),
        (Outcome.UNTESTABLE, Verdict.PARTIAL, "untestable here (1): KV-END-1"),
    ],
)
def test_one_check_decides(outcome: Outcome, verdict: Verdict, reason: str):
    judged = one(outcome)
    assert (judged.verdict, judged.reasons) == (verdict, (reason,))
    unscored = one(outcome, scored=False)
    assert (unscored.verdict, unscored.reasons) == (Verdict.CONFORMANT, ())


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.STALE, Outcome.KNOWN_FAILURE])
def test_a_should_never_decides(outcome: Outcome):
    judged = one(outcome, Level.SHOULD)
    assert (judged.verdict, judged.deviations) == (Verdict.CONFORMANT, ("KV-END-1",))
    assert one(Outcome.UNTESTABLE, Level.SHOULD).not_verified == ("KV-END-1",)


def test_a_should_that_broke_is_still_unknown():
    assert one(Outcome.HARNESS_ERROR, Level.SHOULD).verdict is Verdict.UNKNOWN


def test_what_is_left_out_on_purpose_is_partial():
    judged = one(Outcome.NOT_RUN, asked=False)
    assert (judged.verdict, judged.not_verified) == (Verdict.PARTIAL, ("KV-END-1",))


def test_the_gravest_comes_first():
    outcomes = [Outcome.UNTESTABLE, Outcome.HARNESS_ERROR, Outcome.FAILED]
    checks = [Scored(f"KV-END-{n}", Level.MUST, outcome) for n, outcome in enumerate(outcomes, 1)]
    assert judge(checks, []).verdict is Verdict.FAILED
    assert judge(checks[:2], []).verdict is Verdict.UNKNOWN
    assert judge(checks[:1], []).verdict is Verdict.PARTIAL
    assert judge(checks, []).reasons[0] == "failed (1): KV-END-3"


def test_a_run_that_broke_is_unknown_unless_something_failed():
    assert judge([GOOD], [], ["pytest ended by itself"]).verdict is Verdict.UNKNOWN
    failed = Scored("KV-END-1", Level.MUST, Outcome.FAILED)
    assert judge([GOOD, failed], [], ["pytest ended by itself"]).verdict is Verdict.FAILED


def test_a_run_of_nothing_is_no_success():
    assert judge([], []).verdict is Verdict.UNKNOWN
    assert judge([Scored("KV-END-1", Level.SHOULD, Outcome.PASSED)], []).verdict is Verdict.UNKNOWN


def test_a_claim_needs_a_check_and_each_of_its_checks():
    judged = judge([GOOD, WRITES], ["write", "fence"])
    assert (judged.verdict, judged.proven) == (Verdict.PARTIAL, ("write",))
    assert judged.reasons == ("declared and not proven: fence",)
    untestable = Scored("KV-CAP-3", Level.MUST, Outcome.UNTESTABLE, "write")
    assert judge([GOOD, WRITES, untestable], ["write"]).proven == ()
    unscored = Scored("KV-CAP-3", Level.MUST, Outcome.FAILED, "write", scored=False)
    should = Scored("KV-CAP-4", Level.SHOULD, Outcome.FAILED, "write")
    assert judge([GOOD, WRITES, unscored, should], ["write"]).proven == ("write",)


def test_refused_is_what_every_check_saw_refused():
    half = Scored("KV-CAP-3", Level.MUST, Outcome.UNTESTABLE, "read")
    assert judge([GOOD, REFUSES, half], []).refused == ()
    assert judge([GOOD, REFUSES], []).refused == ("read",)


def test_many_ids_are_not_all_listed():
    checks = [Scored(f"KV-MEM-{n}", Level.MUST, Outcome.FAILED) for n in range(1, 21)]
    assert judge(checks, []).reasons[0].endswith("KV-MEM-12 and 8 more")


def test_each_verdict_has_its_exit_status():
    assert {verdict.value: status for verdict, status in EXIT_STATUS.items()} == {
        "conformant": 0, "failed": 1, "partial": 3, "unknown": 4,
    }  # fmt: skip


def test_a_claim_that_cannot_be_refused_is_proven_by_a_check_of_its_own():
    proves = Scored("KV-CAP-3", Level.MUST, Outcome.PASSED, proves="aux")
    declared = judge([GOOD, WRITES, proves], ["write", "aux"])
    assert (declared.verdict, declared.proven) == (Verdict.CONFORMANT, ("aux", "write"))
    undeclared = judge([GOOD, WRITES, proves], ["write"])
    assert (undeclared.verdict, undeclared.refused) == (Verdict.CONFORMANT, ())
    failed = judge([GOOD, WRITES, Scored("KV-CAP-3", Level.MUST, Outcome.FAILED, proves="aux")], ["write", "aux"])
    assert (failed.verdict, failed.proven) == (Verdict.FAILED, ("write",))
