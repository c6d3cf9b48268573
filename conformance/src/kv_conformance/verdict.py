"""From the outcomes of checks to a verdict. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kv_conformance.catalog import Level
from kv_conformance.outcomes import Outcome, Verdict

EXIT_STATUS = {Verdict.CONFORMANT: 0, Verdict.FAILED: 1, Verdict.PARTIAL: 3, Verdict.UNKNOWN: 4}
_SHOWN = 12


@dataclass(frozen=True)
class Scored:
    """One check as the verdict sees it. ``asked``: it was to be run; otherwise it was left out on purpose."""

    id: str
    level: Level
    outcome: Outcome
    requires: str = ""
    proves: str = ""
    scored: bool = True
    asked: bool = True


@dataclass(frozen=True)
class Judgement:
    """The verdict with a sentence for each reason, and what it follows from.

    proven: declared capabilities of which every scored MUST check, that requires or proves them, passed. refused: undeclared ones of which every one was
    refused. not_verified: scored checks that say nothing. deviations: SHOULD checks that failed.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    proven: tuple[str, ...]
    refused: tuple[str, ...]
    not_verified: tuple[str, ...]
    deviations: tuple[str, ...]


def judge(checks: Sequence[Scored], claimed: Iterable[str], troubles: Sequence[str] = ()) -> Judgement:
    """Judge a run. ``claimed``: what the backend declares. ``troubles``: what went wrong with the run itself."""
    scored = [check for check in checks if check.scored]
    must = [check for check in scored if check.level is Level.MUST]
    declared = sorted(set(claimed))
    proven = [
        name for name in declared if _all_are(Outcome.PASSED, [c for c in must if name in (c.requires, c.proves)])
    ]
    others = sorted({check.requires for check in must if check.requires} - set(declared))
    refused = [name for name in others if _all_are(Outcome.REFUSED, [c for c in must if c.requires == name])]

    def ids(
        of: Sequence[Scored], *outcomes: Outcome, when: Callable[[Scored], bool] = lambda _check: True
    ) -> list[str]:
        return [check.id for check in of if check.outcome in outcomes and when(check)]

    failed = _sentences(
        ("failed", ids(must, Outcome.FAILED)),
        ("listed as known failures, and not failing", ids(must, Outcome.STALE)),
    )
    unknown = _sentences(
        ("broken by the suite or the harness, so that nothing is known", ids(scored, Outcome.HARNESS_ERROR)),
        ("without an outcome", ids(scored, Outcome.NOT_RUN, when=lambda check: check.asked)),
    )
    partial = _sentences(
        ("known failures", ids(must, Outcome.KNOWN_FAILURE)),
        ("untestable here", ids(must, Outcome.UNTESTABLE)),
        ("left out", ids(must, Outcome.NOT_RUN, when=lambda check: not check.asked)),
    )
    unproven = [name for name in declared if name not in proven]
    if unproven:
        partial.append(f"declared and not proven: {', '.join(unproven)}")
    if not must:
        unknown.append("nothing was to be shown: no MUST check is scored")
    unknown = [*troubles, *unknown]
    verdict = (
        Verdict.FAILED if failed
        else Verdict.UNKNOWN if unknown
        else Verdict.PARTIAL if partial
        else Verdict.CONFORMANT
    )  # fmt: skip
    return Judgement(
        verdict, (*failed, *unknown, *partial), tuple(proven), tuple(refused),
        tuple(ids(scored, Outcome.UNTESTABLE, Outcome.NOT_RUN)),
        tuple(check.id for check in scored if check.level is Level.SHOULD and check.outcome in _DEVIATIONS),
    )  # fmt: skip


_DEVIATIONS = (Outcome.FAILED, Outcome.KNOWN_FAILURE, Outcome.STALE)


def shortened(ids: Sequence[str]) -> str:
    """Ids, not more than fit a line or two."""
    more = len(ids) - _SHOWN
    return ", ".join(ids[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _all_are(outcome: Outcome, checks: Sequence[Scored]) -> bool:
    return bool(checks) and all(check.outcome is outcome for check in checks)


def _sentences(*groups: tuple[str, list[str]]) -> list[str]:
    return [f"{what} ({len(ids)}): {shortened(ids)}" for what, ids in groups if ids]
