"""What becomes of a check, decided from what was raised: the rules that need no pytest."""

from __future__ import annotations

import itertools

import pytest

from kv_conformance.catalog import Check, Level
from kv_conformance.harness import Harness
from kv_conformance.outcomes import CheckTimeout, HarnessError, Outcome, Untestable
from kv_conformance.plugin_outcome import (
    PASSED,
    Phase,
    Result,
    Settled,
    beforehand,
    brief,
    known_failure,
    of_phase,
    worst,
)
from kv_conformance.plugin_subject import Subject
from kv_core import BackendInfo, Capability, NotSupported, TransportError

PLAIN = Check("KV-XFER-1", Level.MUST, "It works.", "look.")
FENCE = Check("KV-CAP-1", Level.MUST, "It fences.", "look.", requires=Capability.FENCE)
LIGHT = Check("KV-ID-1", Level.MUST, "It is light.", "look.", engine=False)
INFO = BackendInfo("good", "kv-good", "1.0", (1, 0), frozenset({Capability.WRITE}))
GOOD = Subject("good", INFO)
FENCING = Subject("good", BackendInfo("good", "kv-good", "1.0", (1, 0), frozenset({Capability.FENCE})))


class StandIn(Harness):
    stand_in = "a stand-in"


BARE = Subject("good", INFO, missing=("no RDMA device",))
STANDIN = Subject("good", INFO, harness=StandIn(), missing=("no RDMA device",))
REFUSAL = NotSupported("fencing", "fence")


def raised(
    error: BaseException | None, check: Check = PLAIN, subject: Subject = GOOD, phase: Phase = Phase.CALL
) -> Result:
    return of_phase(phase, error, check, subject)


def test_what_is_known_beforehand():
    assert beforehand(PLAIN, GOOD) is None
    assert beforehand(PLAIN, BARE) == Result(Outcome.UNTESTABLE, "missing here: no RDMA device")
    assert beforehand(LIGHT, BARE) is None
    assert beforehand(PLAIN, STANDIN) is None
    broken = Subject("good", INFO, harness=None, harness_error="it is broken")
    assert beforehand(LIGHT, broken) == Result(Outcome.HARNESS_ERROR, "it is broken")
    unreadable = Subject("good", info_error="ImportError: no")
    assert beforehand(PLAIN, unreadable) is None
    assert beforehand(FENCE, unreadable) == Result(
        Outcome.FAILED, "what the backend declares can't be read: ImportError: no"
    )


@pytest.mark.parametrize(
    "error", [ValueError("x"), AssertionError("x"), REFUSAL, TransportError("x"), CheckTimeout("x")]
)
def test_an_error_in_a_check_fails_it(error: BaseException):
    assert raised(error).outcome is Outcome.FAILED
    assert raised(error, FENCE, FENCING).outcome is Outcome.FAILED, "also where the capability is declared"
    assert raised(None, FENCE, FENCING) is PASSED


@pytest.mark.parametrize("phase", [Phase.SETUP, Phase.CALL])
def test_a_refusal_of_what_is_not_declared(phase: Phase):
    assert raised(REFUSAL, FENCE, phase=phase).outcome is Outcome.REFUSED


def test_only_the_exception_itself_is_a_refusal():
    wrapped = TransportError("no")
    wrapped.__cause__ = REFUSAL
    result = raised(wrapped, FENCE)
    assert result == Result(Outcome.FAILED, "refused with TransportError instead of NotSupported: TransportError: no")
    assert raised(REFUSAL, FENCE, phase=Phase.TEARDOWN).outcome is Outcome.HARNESS_ERROR


def test_what_works_must_be_declared():
    result = raised(None, FENCE)
    assert result.outcome is Outcome.FAILED
    assert "declare it, or refuse" in result.detail
    assert raised(None, FENCE, phase=Phase.SETUP) is PASSED


def test_a_check_that_hangs_has_not_refused_wrongly():
    assert raised(CheckTimeout("did not end within 3 s"), FENCE).detail == "did not end within 3 s"


@pytest.mark.parametrize("phase", list(Phase))
def test_what_a_check_says_about_itself(phase: Phase):
    for check in (PLAIN, FENCE):
        assert raised(Untestable("no second machine"), check, phase=phase) == Result(
            Outcome.UNTESTABLE, "no second machine"
        )
        assert raised(HarnessError("nonsense"), check, phase=phase) == Result(Outcome.HARNESS_ERROR, "nonsense")
        for skip in (pytest.skip.Exception("later"), pytest.xfail.Exception("later")):
            assert raised(skip, check, phase=phase).outcome is Outcome.HARNESS_ERROR
    assert raised(Settled(Result(Outcome.UNTESTABLE, "x")), phase=phase) == Result(Outcome.UNTESTABLE, "x")


def test_fixtures_break_the_harness_and_only_their_assertions_at_the_end_the_backend():
    assert raised(AssertionError("x"), phase=Phase.SETUP).outcome is Outcome.HARNESS_ERROR
    assert raised(OSError("x"), phase=Phase.SETUP).detail == "the check's setup broke: OSError: x"
    assert raised(OSError("x"), phase=Phase.TEARDOWN).outcome is Outcome.HARNESS_ERROR
    assert raised(AssertionError("a thread is left"), phase=Phase.TEARDOWN) == Result(
        Outcome.FAILED, "a thread is left"
    )


def test_a_check_that_did_not_get_there_says_nothing():
    check = Check("KV-XFER-2", Level.MUST, "It goes.", "look.", reaches=("a", "b"))
    assert (
        of_phase(Phase.CALL, None, check, GOOD, reached={"a"}).detail == "never got to: b. That it passed says nothing"
    )
    assert of_phase(Phase.CALL, None, check, GOOD, reached={"a", "b"}) is PASSED


def test_a_stand_in_proves_nothing_but_failures():
    assert raised(None, PLAIN, STANDIN) == Result(
        Outcome.UNTESTABLE, "passed against a stand-in; missing here: no RDMA device"
    )
    assert raised(None, LIGHT, STANDIN) is PASSED
    assert raised(REFUSAL, FENCE, STANDIN).outcome is Outcome.UNTESTABLE
    assert raised(ValueError("x"), PLAIN, STANDIN).outcome is Outcome.FAILED


def test_the_gravest_phase_counts():
    weights = (Outcome.PASSED, Outcome.REFUSED, Outcome.UNTESTABLE, Outcome.HARNESS_ERROR, Outcome.FAILED)
    for light, heavy in itertools.combinations([Result(outcome, outcome.value) for outcome in weights], 2):
        assert worst([light, heavy]) == worst([heavy, light]) == heavy
    assert worst([Result(Outcome.FAILED, "first"), Result(Outcome.FAILED, "second")]).detail == "first"


@pytest.mark.parametrize(
    ("outcome", "listed"),
    [
        (Outcome.FAILED, Outcome.KNOWN_FAILURE),
        (Outcome.PASSED, Outcome.STALE),
        (Outcome.REFUSED, Outcome.STALE),
        (Outcome.UNTESTABLE, Outcome.UNTESTABLE),
        (Outcome.HARNESS_ERROR, Outcome.HARNESS_ERROR),
    ],
)
def test_known_failures(outcome: Outcome, listed: Outcome):
    assert known_failure(Result(outcome, "seen"), "why", "where").outcome is listed


def test_long_messages_are_cut():
    assert brief("a\n\n b\nc\nd\ne") == "a\n b\nc\nd ..."
    assert len(brief("x" * 5000)) < 700
    assert brief("short") == "short"
