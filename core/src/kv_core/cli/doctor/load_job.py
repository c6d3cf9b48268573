"""In a child: load plugins as an engine would, and run the checks that they bring."""

from __future__ import annotations

from kv_core.cli.doctor.jobs import Checked, LoadBackend, PluginLoaded, Tell
from kv_core.contract.records import CheckStatus, DoctorCheck, DoctorFinding
from kv_core.registry import PluginError, Registry, describe_backends, describe_plugins, doctor_checks


def load_backend(job: LoadBackend, tell: Tell) -> None:
    """Load one backend, and tell; then run its checks, and tell of each."""
    registry = Registry()
    for report in describe_backends(registry, only=job.name):
        tell(PluginLoaded(report))
    _run(doctor_checks(registry, plugins=False), tell)


def load_plugins(tell: Tell) -> None:
    """The same for every plugin that is no backend."""
    registry = Registry()
    for report in describe_plugins(registry):
        tell(PluginLoaded(report))
    try:
        checks = doctor_checks(registry)
    except PluginError:  # KV_CORE_STRICT_PLUGINS: it has been told of above, and transfers show what comes of it
        return
    _run(checks, tell)


def _run(checks: list[DoctorCheck], tell: Tell) -> None:
    for check in checks:
        tell(Checked(check.title, _findings(check)))


def _findings(check: DoctorCheck) -> tuple[DoctorFinding, ...]:
    try:
        found = tuple(check.run())
        if all(isinstance(finding, DoctorFinding) for finding in found):
            return found
        reason = f"returned {found!r:.200}, not DoctorFindings"
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin's mistake is news of the plugin
        reason = f"raised {type(error).__name__}: {error}"
    remedy = "Upgrade the plugin that brings the check, or report this to its authors"
    return (DoctorFinding(check.id, CheckStatus.PROBLEM, f"The check {check.title!r} {reason}", remedy),)
