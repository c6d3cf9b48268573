"""What can become of a check, and the exceptions by which a check says that it could not be run."""

from __future__ import annotations

from enum import Enum


class Outcome(str, Enum):
    """What became of one check.

    A capability that is not declared and is refused rightly is REFUSED. KNOWN_FAILURE: failed, and listed with a reason;
    STALE: listed, and it passed, which fails the run. UNTESTABLE: something that it needs is missing here; it is no pass.
    HARNESS_ERROR: the suite or the harness broke, so nothing is known. NOT_RUN: it was left out, or never reached.
    """

    PASSED = "passed"
    FAILED = "failed"
    REFUSED = "refused"
    KNOWN_FAILURE = "known_failure"
    STALE = "stale"
    UNTESTABLE = "untestable"
    HARNESS_ERROR = "harness_error"
    NOT_RUN = "not_run"


class Verdict(str, Enum):
    """What a run says of a backend."""

    CONFORMANT = "conformant"
    PARTIAL = "partial"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Untestable(Exception):
    """Raised in a check: something that it needs is missing here. The message says what."""


class HarnessError(Exception):
    """Raised in a check: the harness or the suite itself broke; says nothing about the backend."""


class CheckTimeout(BaseException):
    """Raised in a check by the suite: it did not end in time. No ``Exception``: nothing that a check catches, or Hypothesis,
    may take it for an answer of the backend.
    """
