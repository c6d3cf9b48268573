"""What is installed: backends and plugins that load or do not, wheels that clash, files that are gone, the wrong CUDA."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from kv_core.cli.doctor.facts.distributions import Wheel, canonical
from kv_core.cli.doctor.jobs import Checked, MachineSeen, PluginLoaded
from kv_core.cli.doctor.processes import Outcome
from kv_core.contract.doctor import ok, problem, warning
from kv_core.contract.records import CheckStatus, DoctorFinding
from kv_core.registry import PluginReport, PluginStatus

VERSIONS = ok("backends.core", "kv-core {version}, Python {python}, {system}")
NONE = problem("backends.none", "No backend is installed", "By custom they are called kv-NAME: pip install kv-NAME")
UNKNOWN = problem(
    "backends.unknown",
    "No installed distribution offers the backend {name!r}; installed are: {names}",
    "pip install kv-{name} into the environment of {executable}, or correct --backend",
)
LOADS = ok("backends.loads", "Backend {name}: {label} loads (plugin API {api}; {capabilities})")
DISABLED = problem(
    "backends.disabled",
    "Backend {name} ({label}) is disabled by KV_CORE_DISABLED_PLUGINS",
    "Take it out of that variable",
)
BROKEN = problem("backends.broken", "Backend {name} ({label}) does not load: {error_type}: {error}", "{hint}")
LIBRARY = problem(
    "backends.library", "Backend {name} ({label}) does not load, a shared library is missing: {error}", "{hint}"
)
INCOMPATIBLE = problem("backends.incompatible", "Backend {name} ({label}) can't be used: {error}", "{hint}")
CRASHED = problem(
    "backends.crashed",
    "Loading backend {name} took its whole process along: it {how}",
    "Its last words: {tail}. Reinstall its engine in the build that fits this machine's system, driver and CUDA or ROCm",
)
PLUGIN_BROKEN = warning(
    "plugins.broken", "Plugin {name} ({label}) is left out: {error_type}: {error}", "{hint}; or uninstall it"
)
PLUGINS_CRASHED = problem(
    "plugins.crashed",
    "Loading the plugins that are no backend took a whole process along: it {how}",
    "Its last words: {tail}",
)
CLASH = problem(
    "packages.clash",
    "{first} and {second} are both installed and overwrite each other's files ({count}, such as {file})",
    "Keep one of them, the one that fits this machine: pip uninstall -y {first_name} {second_name}, then install that one anew",
)
GONE = problem(
    "packages.files-gone",
    "{count} files of {label} are gone (such as {file}): another distribution that had them too was uninstalled, or they were deleted",
    "pip install --force-reinstall --no-deps {name}=={version}",
)
CUDA = problem(
    "packages.cuda",
    "{label} is built for CUDA {wheel}, and this machine's driver runs CUDA {driver} at most",
    "Install a newer NVIDIA driver, or the engine's build for CUDA {driver_major}",
)

_LIBRARY = re.compile(r"[\w.+-]+\.so[\w.]*: cannot open shared object file")
_CUDA_NAME = re.compile(r"(?:^|-)cu(?:da)?-?(1\d)(?:$|-|\d)")
TAIL = 300


def backends(
    outcomes: dict[str, Outcome], asked: str | None, installed: Sequence[str], executable: str
) -> Iterator[DoctorFinding]:
    """Each backend that a child tried to load, by name. One that nobody asked for is a problem only if no other one works."""
    if not installed:
        yield NONE.found()
    if asked is not None and asked not in installed:
        yield UNKNOWN.found(name=asked, names=", ".join(installed) or "none", executable=executable)
    usable = working(outcomes)
    for name, outcome in outcomes.items():
        grave = asked == name or (asked is None and not usable)
        loaded = outcome.first(PluginLoaded)
        if loaded is None:
            finding = CRASHED.found(
                name=name, how=outcome.ended or "ended without a word", tail=shortened(outcome.tail)
            )
        else:
            finding = _loaded(loaded.report)
        yield finding if grave else milder(finding)
        yield from checks(outcome, grave=grave)


def working(outcomes: dict[str, Outcome]) -> list[str]:
    """Names of the backends that load."""
    found = {name: outcome.first(PluginLoaded) for name, outcome in outcomes.items()}
    return [name for name, each in found.items() if each is not None and each.report.status is PluginStatus.OK]


def _loaded(report: PluginReport) -> DoctorFinding:
    told = _told(report)
    if report.status is PluginStatus.OK:
        return LOADS.found(**told, api=report.api, capabilities=", ".join(report.capabilities))
    if report.status is PluginStatus.DISABLED:
        return DISABLED.found(**told)
    kind = BROKEN
    if report.error_type == "IncompatibleBackend":
        kind = INCOMPATIBLE
    elif _LIBRARY.search(report.error):
        kind = LIBRARY
    return kind.found(**told, error_type=report.error_type, error=report.error, hint=report.hint)


def plugins(outcome: Outcome) -> Iterator[DoctorFinding]:
    """Observer plugins, and what the checks found that they bring."""
    if outcome.ended:
        yield PLUGINS_CRASHED.found(how=outcome.ended, tail=shortened(outcome.tail))
    for loaded in outcome.every(PluginLoaded):
        report = loaded.report
        if report.status is PluginStatus.BROKEN:
            yield PLUGIN_BROKEN.found(
                **_told(report), error_type=report.error_type, error=report.error, hint=report.hint
            )
    yield from checks(outcome, grave=True)


def checks(outcome: Outcome, *, grave: bool) -> Iterator[DoctorFinding]:
    """What plugins' own checks found."""
    for checked in outcome.every(Checked):
        for finding in checked.findings:
            yield finding if grave else milder(finding)


def _told(report: PluginReport) -> dict[str, str]:
    labels = [f"{name} {version}" for name, version in zip(report.distributions, report.versions, strict=False)]
    return {"name": report.name, "label": " and ".join(labels)}


def milder(finding: DoctorFinding) -> DoctorFinding:
    """The finding as a warning, if it is a problem: it is about something that nobody asked for."""
    if finding.status is not CheckStatus.PROBLEM:
        return finding
    return DoctorFinding(finding.id, CheckStatus.WARNING, finding.message, finding.remedy)


def wheels(found: Sequence[Wheel], machine: MachineSeen, asked: str | None) -> Iterator[DoctorFinding]:
    """Engines' distributions that stand in each other's way, lack files, or need a newer driver."""
    for first, second in combinations(found, 2):
        files = [path for path, own in first.files.items() if second.files.get(path, own) != own]
        if files:
            finding = CLASH.found(
                first=f"{first.name} {first.version}", second=f"{second.name} {second.version}", count=len(files),
                file=min(files), first_name=first.name, second_name=second.name,
            )  # fmt: skip
            yield _graded(finding, (first, second), asked)
    for wheel in found:
        told = {"label": f"{wheel.name} {wheel.version}", "name": wheel.name, "version": wheel.version}
        if wheel.missing:
            yield _graded(GONE.found(count=len(wheel.missing), file=wheel.missing[0], **told), (wheel,), asked)
        built_for = _CUDA_NAME.search(canonical(wheel.name))
        driver = machine.cuda_version
        if built_for and driver and int(built_for[1]) > driver // 1000:
            shown = f"{driver // 1000}.{driver % 1000 // 10}"
            finding = CUDA.found(label=told["label"], wheel=built_for[1], driver=shown, driver_major=driver // 1000)
            yield _graded(finding, (wheel,), asked, optional=True)


def _graded(
    finding: DoctorFinding, involved: Iterable[Wheel], asked: str | None, *, optional: bool = False
) -> DoctorFinding:
    """A problem where the asked backend's engine is involved, and not only one of the builds that it may choose from."""
    concerned = asked is not None and all(asked in wheel.wanted_by for wheel in involved)
    return finding if concerned and not optional else milder(finding)


def shortened(text: str) -> str:
    """The end of what a process said, on one line."""
    line = " / ".join(part.strip() for part in text.splitlines() if part.strip())
    return f"...{line[-TAIL:]}" if len(line) > TAIL else line or "none"
