"""Pages made from a report, and from the list of checks. Pure: whoever has the JSON can make them again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from kv_conformance.catalog import AREAS, Check
from kv_conformance.outcomes import Outcome

WORDS = {
    Outcome.PASSED: "passed",
    Outcome.FAILED: "**failed**",
    Outcome.REFUSED: "refused",
    Outcome.KNOWN_FAILURE: "known failure",
    Outcome.STALE: "**stale entry**",
    Outcome.UNTESTABLE: "untestable",
    Outcome.HARNESS_ERROR: "**harness error**",
    Outcome.NOT_RUN: "not run",
}


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report as a page."""
    notes: list[str] = []
    parts = [
        f"# {_head(report)}",
        _bullets(report["reasons"]),
        _facts(report),
        *_areas(report["checks"], notes),
        _known(report),
        "\n".join(notes),
        _reproduce(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_markdown(report: Mapping[str, Any]) -> str:
    """The short form, for a backend's README."""
    backend, suite = report["backend"], report["suite"]
    head = (
        f"**{report['verdict']}**: kv-conformance {suite['version']} (requirement set {suite['requirement_set']}), "
        f"{_text(backend['distribution'])} {_text(backend['version'])}, kv-core {report['kv_core']['version']}, "
        f"{report['time_utc'][:10]}."
    )
    lines = [
        head,
        "",
        f"- {counts(report)}",
        f"- Capabilities claimed: {_names(report['claimed'])}; proven: {_names(report['proven'])}"
        + (f"; rightly refused: {_names(report['refused'])}" if report["refused"] else ""),
    ]
    if report["fabrics"]:
        lines.append(f"- Fabric in use: {', '.join(_text(fabric) for fabric in report['fabrics'])}")
    if report["stand_in"]:
        lines.append(f"- Ran against {_text(report['stand_in'])}, not against the engine itself")
    if report["missing"]:
        lines.append(f"- Missing here: {_text('; '.join(report['missing']))}")
    if report["settings"]:
        told = "; ".join(f"{where}: {what}" for where, what in report["settings"].items())
        lines.append(f"- Processes run under {_text(told)}")
    if report["not_verified"]:
        lines.append(f"- Not verified: {', '.join(report['not_verified'])}")
    if report["deviations"]:
        lines.append(f"- Deviates from SHOULD: {', '.join(report['deviations'])}")
    lines += [
        f"- Known failure {one['id']}: {_text(one['reason'])} ({one['link']})" for one in report["known_failures"]
    ]
    return "\n".join(lines) + "\n"


def counts(report: Mapping[str, Any]) -> str:
    """How many checks there are and what became of them; outcomes that nothing had are left out."""
    totals = report["totals"]
    parts = [f"{totals[one.value]} {one.value.replace('_', ' ')}" for one in Outcome if totals[one.value]]
    return f"{totals['checks']} checks: {', '.join(parts)}"


def catalogue(checks: Sequence[Check]) -> str:
    """Every check with its sentence and its advice, by area: becomes a page of the documentation."""
    parts = []
    for area, group in groupby(checks, key=lambda check: check.area):
        parts.append(f"## KV-{area}: {_text(AREAS[area])}")
        parts += [_described(check) for check in group]
    return "\n\n".join(parts) + "\n"


def _described(check: Check) -> str:
    about = [check.level.value]
    if check.requires:
        about.append(f"capability `{check.requires.value}`")
    if check.faults:
        about.append(f"faults: {', '.join(sorted(f'`{fault.value}`' for fault in check.faults))}")
    if not check.engine:
        about.append("needs no engine")
    if not check.gate:
        about.append("not in the short run")
    return f"**{check.id}** ({'; '.join(about)}). {_text(check.sentence)}\n*If this fails,* {_text(check.advice)}"


def _head(report: Mapping[str, Any]) -> str:
    backend = report["backend"]
    return (
        f"{report['verdict'].upper()}: `{backend['name']}` ({_text(backend['distribution'])} {_text(backend['version'])}), "
        f"kv-conformance {report['suite']['version']}"
    )


def _facts(report: Mapping[str, Any]) -> str:
    backend, place, core = report["backend"], report["platform"], report["kv_core"]
    api = ".".join(map(str, backend.get("api_version", ()))) or "unknown"
    rows = {
        "Backend": f"`{backend['name']}` of {backend['distribution']} {backend['version']}, built for API {api}",
        "What it is": backend.get("description", ""),
        "kv-core": f"{core['version']}, API {'.'.join(map(str, core['api']))}",
        "Requirement set": report["suite"]["requirement_set"],
        "Checks": counts(report),
        "Capabilities claimed": _names(report["claimed"]),
        "Proven": _names(report["proven"]),
        "Rightly refused": _names(report["refused"]),
        "Not verified": ", ".join(report["not_verified"]),
        "Deviations from SHOULD": ", ".join(report["deviations"]),
        "Fabric in use": ", ".join(report["fabrics"]),
        "Processes run under": "; ".join(f"{where}: {what}" for where, what in report["settings"].items()),
        "Stand-in": report["stand_in"],
        "Missing here": "; ".join(report["missing"]),
        "Distributions": ", ".join(f"{name} {version}" for name, version in report["distributions"].items()),
        "Machine": f"{place['implementation']} {place['python']}, {place['os']}, {place['kernel']}, {place['machine']}, "
        f"{place['cpus']} CPUs",
        "When": f"{report['time_utc']} (UTC), took {report['wall_s']:.0f} s",
        "Git revision": report["git_revision"],
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {_text(value)} |" for name, value in rows.items() if value)


def _areas(checks: Iterable[Mapping[str, Any]], notes: list[str]) -> Iterable[str]:
    for area, group in groupby(checks, key=lambda check: check["area"]):
        rows = [f"| {check['id']} | {check['level']} | {_about(check)} | {_outcome(check, notes)} |" for check in group]
        yield (
            f"## {_text(area)}\n\n| check | level | what the contract says | outcome |\n|---|---|---|---|\n"
            + "\n".join(rows)
        )


def _about(check: Mapping[str, Any]) -> str:
    needs = f" *(capability `{check['requires']}`)*" if check["requires"] else ""
    return _text(check["sentence"]) + needs + ("" if check["scored"] else " *(not scored)*")


def _outcome(check: Mapping[str, Any], notes: list[str]) -> str:
    outcome = Outcome(check["outcome"])
    if outcome is Outcome.PASSED:
        return WORDS[outcome]
    label = f"[^{check['id'].lower()}]"
    advice = f" *If this fails,* {_text(check['advice'])}" if outcome in (Outcome.FAILED, Outcome.STALE) else ""
    notes.append(f"{label}: {check['id']}: {_text(check['detail'])}{advice}")
    return WORDS[outcome] + label


def _known(report: Mapping[str, Any]) -> str:
    rows = [
        f"| {one['id']} | {_text(one['reason'])} | {_text(one['link'])} | {_text(one['since'])} | "
        f"{one['outcome'].replace('_', ' ')} |"
        for one in report["known_failures"]
    ]
    head = "## Known failures\n\n| check | reason | link | since | now |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows) if rows else ""


def _reproduce(report: Mapping[str, Any]) -> str:
    wanted = {"kv-core": report["kv_core"]["version"], "kv-conformance": report["suite"]["version"]}
    wanted.update((name, version) for name, version in report["distributions"].items() if not name.startswith("kv-"))
    wanted[report["backend"]["distribution"]] = report["backend"]["version"]
    pins = [f"{name}=={version}" for name, version in sorted(wanted.items())]
    revision = f"git checkout {report['git_revision'].rstrip('+')}\n" if report["git_revision"] else ""
    return (
        f"## Reproduce\n\n```\n{revision}pip install {' '.join(pins)}\n{shlex.join(report['command'])}\n```\n\n"
        f"Run {report['run']}, seed {report['seed']}."
    )


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_text(line)}" for line in lines)


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _text(value: object) -> str:
    """Anybody's text, so that it stays one cell and shows as it is."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    return text.replace("<", "&lt;").replace(">", "&gt;")
