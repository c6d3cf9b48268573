"""What the terminal shows at the end of a run: one screen, made from the report. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

from kv_conformance.markdown import counts
from kv_conformance.outcomes import Outcome
from kv_conformance.verdict import shortened

WIDTH = 110
_LOUD = (Outcome.FAILED, Outcome.STALE, Outcome.HARNESS_ERROR)
_QUIET = (Outcome.KNOWN_FAILURE, Outcome.UNTESTABLE, Outcome.NOT_RUN)


def screen(report: Mapping[str, Any], folder: object = None) -> str:
    """The verdict, why, and each check that did not pass. ``folder``: where the report was written."""
    backend = report["backend"]
    suite = f"kv-conformance {report['suite']['version']}, requirement set {report['suite']['requirement_set']}"
    lines = [
        f"{report['verdict'].upper()}: {backend['name']} ({backend['distribution']} {backend['version']}), {suite}",
        f"{counts(report)} ({report['wall_s']:.0f} s)",
        f"claimed: {_names(report['claimed'])}",
        f"proven:  {_names(report['proven'])}",
    ]
    if report["refused"]:
        lines.append(f"refused: {_names(report['refused'])}")
    lines += [_wrapped(f"- {reason}", "  ") for reason in report["reasons"]]
    lines += _loud(report)
    lines += _quiet(report)
    if folder is not None:
        lines.append(f"\nIn {folder}: report.json, report.md, junit.xml, pytest.log")
    elif any(report["totals"][outcome.value] for outcome in _LOUD):
        lines.append("\nWith --report DIR the whole tracebacks are kept.")
    return "\n".join(lines) + "\n"


def _loud(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for check in report["checks"]:
        outcome = Outcome(check["outcome"])
        if outcome in _LOUD:
            level = "" if check["level"] == "MUST" else f" ({check['level']})"
            scored = "" if check["scored"] else " (not scored)"
            lines.append(
                f"\n{outcome.value.replace('_', ' ').upper()} {check['id']}{level}{scored}: {check['sentence']}"
            )
            lines.append(_wrapped(f"  {_first(check['detail'])}", "    "))
            if outcome is Outcome.FAILED:
                lines.append(_wrapped(f"  If this fails, {check['advice']}", "    "))
    return lines


def _quiet(report: Mapping[str, Any]) -> list[str]:
    """Many checks can have the same reason: once for each."""
    groups: dict[tuple[str, str], list[str]] = {}
    for check in report["checks"]:
        if Outcome(check["outcome"]) in _QUIET:
            groups.setdefault((check["outcome"], _first(check["detail"])), []).append(check["id"])
    lines = [
        _wrapped(f"{outcome.replace('_', ' ')} ({len(ids)}): {shortened(ids)}: {detail}", "  ")
        for (outcome, detail), ids in groups.items()
    ]
    return ["", *lines] if lines else []


def _first(detail: str) -> str:
    return detail.partition("\n")[0]


def _names(names: list[str]) -> str:
    return ", ".join(names) or "nothing"


def _wrapped(text: str, indent: str) -> str:
    return fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
