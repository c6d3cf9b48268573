"""The report: one dictionary, fit for JSON, from which everything else that is shown is made. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kv_conformance.catalog import AREAS, Check, Level
from kv_conformance.known import KnownFailure
from kv_conformance.outcomes import Outcome
from kv_conformance.requirements import RequirementSet
from kv_conformance.results import Ended, Results
from kv_conformance.verdict import Judgement, Scored, judge

SCHEMA = "kv-conformance/1"
"""Changes when a reader of the old one would be misled."""
NO_OUTCOME = "was to be run, and has no outcome"


@dataclass(frozen=True)
class Facts:
    """What is known of a run beyond its results.

    tested: suite, core and backend with their versions. place: the machine. command: what was called, and what repeats it.
    left_out: checks that were not to be run, with the reason. troubles: what went wrong with the run itself.
    """

    tested: Mapping[str, Any]
    place: Mapping[str, Any]
    command: Sequence[str]
    run: str
    time_utc: str
    wall_s: float
    seed: int
    left_out: Mapping[str, str]
    troubles: Sequence[str] = ()


def build(
    checks: Sequence[Check], sets: RequirementSet, results: Results, known: Mapping[str, KnownFailure], facts: Facts
) -> dict[str, Any]:
    """The report of a run."""
    entries = [_entry(check, sets, results.ended.get(check.id), facts.left_out) for check in checks]
    subject = results.subject or {}
    info = subject.get("info") or {}
    claimed = list(info.get("capabilities", ()))
    judgement = judge([_scored(entry, facts.left_out) for entry in entries], claimed, facts.troubles)
    return {
        "schema": SCHEMA,
        "verdict": judgement.verdict.value,
        "reasons": list(judgement.reasons),
        **_tested(facts.tested, info, sets),
        "time_utc": facts.time_utc,
        "platform": dict(facts.place),
        "fabrics": sorted({fabric for ended in results.ended.values() for fabric in ended.fabrics}),
        "harness": subject.get("harness", ""),
        "stand_in": subject.get("stand_in", ""),
        "settings": subject.get("settings", {}),
        "missing": list(subject.get("missing", ())),
        "claimed": claimed,
        "proven": list(judgement.proven),
        "refused": list(judgement.refused),
        "not_verified": list(judgement.not_verified),
        "known_failures": _known(known, entries),
        "deviations": list(judgement.deviations),
        "totals": _totals(entries, judgement),
        "checks": entries,
        "seed": facts.seed,
        "command": list(facts.command),
        "run": facts.run,
        "wall_s": round(facts.wall_s, 1),
    }


def _tested(tested: Mapping[str, Any], info: Mapping[str, Any], sets: RequirementSet) -> dict[str, Any]:
    """The backend as its record has it, else as the metadata of what is installed has it."""
    backend = {
        "name": tested["backend"],
        **tested["installed"],
        **{k: v for k, v in info.items() if k != "capabilities"},
    }
    return {
        "suite": {"version": tested["suite"], "requirement_set": sets.name},
        "kv_core": tested["kv_core"],
        "backend": backend,
        "distributions": dict(tested["distributions"]),
        "git_revision": tested.get("git_revision", ""),
    }


def _entry(check: Check, sets: RequirementSet, ended: Ended | None, left_out: Mapping[str, str]) -> dict[str, Any]:
    if ended is None:
        ended = Ended(Outcome.NOT_RUN, left_out.get(check.id, NO_OUTCOME))
    return {
        "id": check.id,
        "area": AREAS[check.area],
        "level": check.level.value,
        "requires": check.requires.value if check.requires else "",
        "proves": check.proves.value if check.proves else "",
        "scored": check.id in sets.requirements,
        "outcome": ended.outcome.value,
        "detail": ended.detail,
        "duration_s": ended.duration_s,
        "sentence": check.sentence,
        "advice": check.advice,
        "notes": list(ended.notes),
        "longrepr": ended.longrepr,
    }


def _scored(entry: Mapping[str, Any], left_out: Mapping[str, str]) -> Scored:
    return Scored(
        entry["id"], Level(entry["level"]), Outcome(entry["outcome"]), entry["requires"], entry["proves"],
        entry["scored"], asked=entry["id"] not in left_out,
    )  # fmt: skip


def _known(known: Mapping[str, KnownFailure], entries: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    outcomes = {entry["id"]: entry["outcome"] for entry in entries}
    return [
        {
            "id": check,
            "reason": entry.reason,
            "link": entry.link,
            "since": entry.since,
            "outcome": outcomes.get(check, ""),
        }
        for check, entry in known.items()
    ]


def _totals(entries: Sequence[Mapping[str, Any]], judgement: Judgement) -> dict[str, int]:
    counts = {outcome.value: sum(entry["outcome"] == outcome.value for entry in entries) for outcome in Outcome}
    return {
        "checks": len(entries), "scored": sum(bool(entry["scored"]) for entry in entries), **counts,
        "deviations": len(judgement.deviations),
    }  # fmt: skip
