"""What is installed, and what of it works: for the command line and for ``doctor``. Here every plugin is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from kv_core.contract.failures import IncompatibleBackend
from kv_core.contract.records import BackendInfo, CheckStatus, DoctorCheck, DoctorFinding
from kv_core.registry.errors import PluginError, PluginRefused
from kv_core.registry.hook_rules import Hook
from kv_core.registry.loader import DEFAULT, Registry
from kv_core.registry.source import BACKENDS, PLUGINS, Source, scan
from kv_core.registry.strict import StrictPluginManager


class PluginStatus(str, Enum):
    """Whether a plugin can be used here."""

    OK = "ok"
    BROKEN = "broken"
    DISABLED = "disabled"


@dataclass(frozen=True)
class PluginReport:
    """One entry point and how loading it went. The three of ``error_*`` and ``hint`` are empty unless it is broken.

    ``distributions`` and ``versions`` go together; more than one if they contend for the name. ``error_type`` and
    ``error`` are the original error's where the plugin's code raised one, and otherwise core's refusal. ``api``,
    ``capabilities`` and ``description`` are a working backend's.
    """

    group: str
    name: str
    distributions: tuple[str, ...]
    versions: tuple[str, ...]
    value: str
    status: PluginStatus
    api: str = ""
    capabilities: tuple[str, ...] = ()
    description: str = ""
    hooks: tuple[str, ...] = ()
    error_type: str = ""
    error: str = ""
    hint: str = ""

    @property
    def version(self) -> str:
        """The version; several, separated by commas, if distributions contend for the name."""
        return ", ".join(self.versions)

    def as_dict(self) -> dict[str, Any]:
        """As JSON wants it."""
        return {**asdict(self), "status": self.status.value, "version": self.version}


def describe_backends(registry: Registry = DEFAULT, *, only: str | None = None) -> list[PluginReport]:
    """Every installed backend by name (or ``only`` the one of this name), each loaded (imported, checked, preflight run) apart
    from the others.

    Raises nothing for a plugin's sake: an error, or an exit, of one is in its own report.
    """

    def load(sources: Sequence[Source]) -> dict[str, Any]:
        return _about(registry.load_from(sources).info)

    return list(_describe(BACKENDS, load, registry.disabled, only))


def describe_plugins(registry: Registry = DEFAULT) -> list[PluginReport]:
    """Every plugin of observers and doctor checks, in the same way."""
    hooks = StrictPluginManager()

    def load(sources: Sequence[Source]) -> dict[str, Any]:
        registry.load_plugin(sources, hooks)
        return {"hooks": tuple(sorted({hook.name for hook in hooks.plugin_hooks(sources[0].name)}))}

    return list(_describe(PLUGINS, load, registry.disabled))


def doctor_checks(registry: Registry = DEFAULT, *, plugins: bool = True) -> list[DoctorCheck]:
    """The checks of backends that were loaded in this process and, with ``plugins``, of all observer plugins.

    A backend whose engine failed (preflight) is asked too: that is when its checks are wanted. A plugin whose hook
    raises or returns anything else than checks is represented by a check that reports this.
    """
    asked: list[tuple[Source, Hook]] = []
    managers = list(registry.admitted().values())
    if plugins:
        managers.append(registry.load_plugins())
    for hooks in managers:
        for name, _ in hooks.list_name_plugin():
            if not hooks.is_blocked(name):
                own = [hook for hook in hooks.plugin_hooks(name) if hook.name == "kv_doctor_checks"]
                asked.extend((hooks.source(name), hook) for hook in own)
    return [check for source, hook in asked for check in _checks_of(source, hook)]


def _describe(
    group: str, load: Callable[[Sequence[Source]], dict[str, Any]], disabled: frozenset[str], only: str | None = None
) -> Iterator[PluginReport]:
    for name, sources in scan(group).items():
        if only not in (None, name):
            continue
        if name in disabled:
            status, found = PluginStatus.DISABLED, {}
        else:
            try:
                status, found = PluginStatus.OK, load(sources)
            except PluginError as error:
                status, found = PluginStatus.BROKEN, _wrong(error, group)
        yield PluginReport(
            group=group,
            name=name,
            distributions=tuple(source.distribution for source in sources),
            versions=tuple(source.version for source in sources),
            value=", ".join(source.value for source in sources),
            status=status,
            **found,
        )


def _about(info: BackendInfo) -> dict[str, Any]:
    return {
        "api": f"{info.api_version[0]}.{info.api_version[1]}",
        "capabilities": tuple(sorted(capability.value for capability in info.capabilities)),
        "description": info.description,
    }


def _wrong(error: PluginError, group: str) -> dict[str, Any]:
    cause = error.__cause__
    if cause is None:
        kind = IncompatibleBackend if group == BACKENDS and isinstance(error, PluginRefused) else type(error)
        return {"error_type": kind.__name__, "error": error.reason, "hint": error.hint}
    return {"error_type": type(cause).__name__, "error": str(cause) or error.reason, "hint": error.hint}


def _checks_of(source: Source, hook: Hook) -> list[DoctorCheck]:
    try:
        checks = hook.function()
        if isinstance(checks, (list, tuple)) and all(isinstance(check, DoctorCheck) for check in checks):
            return list(checks)
        reason = f"returned {checks!r:.200}, not a list of DoctorCheck"
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one plugin must not hide the checks of the others
        reason = f"raised {type(error).__name__}: {error}"
    finding = DoctorFinding(
        id=f"{source.name}.checks",
        status=CheckStatus.PROBLEM,
        message=f"kv_doctor_checks of plugin {source.name!r} ({source.label}) {reason}",
        remedy=f"Upgrade {source.distribution}, or report this to its authors",
    )
    return [DoctorCheck(id=finding.id, title=f"Checks of plugin {source.name!r}", run=lambda: [finding])]
