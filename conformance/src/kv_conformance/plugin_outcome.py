"""What becomes of a check: decided from what it declares, what the backend declares, and what was raised. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import pytest

from kv_conformance.catalog import Check
from kv_conformance.outcomes import CheckTimeout, HarnessError, Outcome, Untestable
from kv_conformance.plugin_subject import Subject
from kv_core import NotSupported

DETAIL_LINES = 4
DETAIL_CHARACTERS = 600
_SKIPS = (pytest.skip.Exception, pytest.xfail.Exception)


class Phase(str, Enum):
    """The three parts of a test, as pytest calls them."""

    SETUP = "setup"
    CALL = "call"
    TEARDOWN = "teardown"


@dataclass(frozen=True)
class Result:
    """An outcome with its reason; the reason of PASSED is empty."""

    outcome: Outcome
    detail: str = ""


PASSED = Result(Outcome.PASSED)
_WEIGHT = (Outcome.PASSED, Outcome.REFUSED, Outcome.UNTESTABLE, Outcome.HARNESS_ERROR, Outcome.FAILED)


class Settled(Exception):
    """Raised instead of running a check of which the outcome is known beforehand."""

    def __init__(self, result: Result) -> None:
        super().__init__(f"{result.outcome.value}: {result.detail}")
        self.result = result


def beforehand(check: Check, subject: Subject) -> Result | None:
    """The outcome of a check that need not be run, or None."""
    if subject.harness is None:
        return Result(Outcome.HARNESS_ERROR, subject.harness_error)
    if check.engine and subject.missing and not subject.stand_in:
        return Result(Outcome.UNTESTABLE, f"missing here: {'; '.join(subject.missing)}")
    if check.requires and subject.info_error:
        return Result(Outcome.FAILED, f"what the backend declares can't be read: {subject.info_error}")
    return None


def of_phase(
    phase: Phase, error: BaseException | None, check: Check, subject: Subject, *, reached: Iterable[str] = (),
    where: str = "",
) -> Result:  # fmt: skip
    """What one phase means. ``reached``: points that the check came to. ``where``: place of the error, for the message."""
    gated = check.requires is not None and check.requires not in subject.declared
    said = _said(error, gated=gated and phase is not Phase.TEARDOWN)
    if said is not None:
        return _on_stand_in(said, check, subject)
    if error is not None:
        return _broken(phase, error, where, gated=gated)
    if phase is not Phase.CALL:
        return PASSED
    if gated and check.requires is not None:
        name = check.requires.value
        return Result(
            Outcome.FAILED,
            f"works, and the capability {name!r} is not declared: declare it, or refuse with NotSupported",
        )
    never = [point for point in check.reaches if point not in set(reached)]
    if never:
        return Result(Outcome.UNTESTABLE, f"never got to: {', '.join(never)}. That it passed says nothing")
    return _on_stand_in(PASSED, check, subject)


def worst(results: Iterable[Result]) -> Result:
    """Of the phases' results the one that counts: the first of the gravest."""
    return max(results, key=lambda result: _WEIGHT.index(result.outcome), default=PASSED)


def known_failure(result: Result, reason: str, link: str) -> Result:
    """The result of a check that the file of known failures lists."""
    if result.outcome is Outcome.FAILED:
        return Result(Outcome.KNOWN_FAILURE, f"{reason} ({link}). Seen now: {result.detail}")
    if result.outcome in (Outcome.PASSED, Outcome.REFUSED):
        how = "passed" if result.outcome is Outcome.PASSED else "was refused rightly"
        return Result(
            Outcome.STALE, f"listed as a known failure ({reason}), and it {how}: remove its entry from the file"
        )
    return result


def brief(text: str) -> str:
    """The first lines of a message, cut where it gets long."""
    lines = [line.rstrip() for line in text.strip().splitlines() if line.strip()]
    kept = "\n".join(lines[:DETAIL_LINES])
    cut = len(lines) > DETAIL_LINES or len(kept) > DETAIL_CHARACTERS
    return kept[:DETAIL_CHARACTERS] + (" ..." if cut else "")


def _said(error: BaseException | None, *, gated: bool) -> Result | None:
    """What a check or the suite says about itself by an exception of its own."""
    if isinstance(error, Settled):
        return error.result
    if isinstance(error, Untestable):
        return Result(Outcome.UNTESTABLE, brief(str(error)) or "the check does not say why")
    if isinstance(error, HarnessError):
        return Result(Outcome.HARNESS_ERROR, brief(str(error)) or "the check does not say why")
    if isinstance(error, _SKIPS):
        return Result(
            Outcome.HARNESS_ERROR,
            f"skip is not an outcome: {brief(str(error))}. A check raises Untestable with the reason",
        )
    if gated and isinstance(error, NotSupported):
        return Result(Outcome.REFUSED, brief(str(error)))
    return None


def _broken(phase: Phase, error: BaseException, where: str, *, gated: bool) -> Result:
    place = f" ({where})" if where else ""
    message = brief(_words(error))
    if phase is not Phase.CALL and not (phase is Phase.TEARDOWN and isinstance(error, AssertionError)):
        return Result(Outcome.HARNESS_ERROR, f"the check's {phase.value} broke: {message}{place}")
    if gated and phase is Phase.CALL and not isinstance(error, CheckTimeout):
        return Result(Outcome.FAILED, f"refused with {type(error).__name__} instead of NotSupported: {message}{place}")
    return Result(Outcome.FAILED, message + place)


def _words(error: BaseException) -> str:
    """The message; with the type's name in front, unless the message is what a check itself says."""
    text = str(error)
    if text and isinstance(error, AssertionError | CheckTimeout | pytest.fail.Exception):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _on_stand_in(result: Result, check: Check, subject: Subject) -> Result:
    """A stand-in's success proves nothing about the engine whose place it takes."""
    if not (check.engine and subject.missing) or result.outcome not in (Outcome.PASSED, Outcome.REFUSED):
        return result
    how = "passed against" if result.outcome is Outcome.PASSED else "refused by"
    return Result(Outcome.UNTESTABLE, f"{how} {subject.stand_in}; missing here: {'; '.join(subject.missing)}")
