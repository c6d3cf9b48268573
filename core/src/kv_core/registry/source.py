"""Installed entry points, read from distribution metadata alone: nothing here imports a plugin."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import Any

logger = logging.getLogger(__name__)

BACKENDS = "kv_core.backends"
"""Entry-point group of backends; the entry point's name is the backend's name."""
PLUGINS = "kv_core.plugins"
"""Entry-point group of observers and doctor checks that belong to no backend."""
DISABLED_VARIABLE = "KV_CORE_DISABLED_PLUGINS"
STRICT_VARIABLE = "KV_CORE_STRICT_PLUGINS"
UNKNOWN_VERSION = "(version unknown)"


@dataclass(frozen=True)
class Source:
    """Where a plugin comes from: its entry point and the distribution that declares it."""

    group: str
    name: str
    value: str
    distribution: str
    version: str = UNKNOWN_VERSION

    @property
    def label(self) -> str:
        """The distribution with its version."""
        return f"{self.distribution} {self.version}"

    @property
    def module(self) -> str:
        """The module that ``load`` imports."""
        return self.value.partition(":")[0].strip()

    def load(self) -> Any:
        """Import the module and return the object that the entry point names. Raises whatever the plugin raises."""
        return EntryPoint(name=self.name, value=self.value, group=self.group).load()


@dataclass(frozen=True)
class InstalledBackend:
    """A backend's name as the metadata has it. More than one distribution: they contend for it and neither is loaded.

    ``distributions``, ``versions`` and ``values`` (the entry points' values) go together, one entry per distribution.
    ``disabled``: named in KV_CORE_DISABLED_PLUGINS.
    """

    name: str
    distributions: tuple[str, ...]
    versions: tuple[str, ...]
    values: tuple[str, ...]
    disabled: bool = False

    @property
    def value(self) -> str:
        """The entry point's value; several, separated by commas, if distributions contend for the name."""
        return ", ".join(self.values)


def scan(group: str) -> dict[str, tuple[Source, ...]]:
    """Every entry point of a group by name, sorted. More than one source under a name means that they contend for it."""
    found: dict[str, dict[Source, None]] = {}
    for entry_point in _entry_points(group):
        found.setdefault(entry_point.name, {})[_source(entry_point)] = None
    return {name: tuple(found[name]) for name in sorted(found)}


def installed(group: str, disabled: frozenset[str]) -> list[InstalledBackend]:
    """The listing of a group."""
    return [
        InstalledBackend(
            name=name,
            distributions=tuple(source.distribution for source in sources),
            versions=tuple(source.version for source in sources),
            values=tuple(source.value for source in sources),
            disabled=name in disabled,
        )
        for name, sources in scan(group).items()
    ]


def disabled_names(environ: Mapping[str, str] | None = None) -> frozenset[str]:
    """Names in KV_CORE_DISABLED_PLUGINS (separated by commas), which holds for both groups."""
    value = (os.environ if environ is None else environ).get(DISABLED_VARIABLE, "")
    return frozenset(name.strip() for name in value.split(",") if name.strip())


def strict_plugins(environ: Mapping[str, str] | None = None) -> bool:
    """Whether KV_CORE_STRICT_PLUGINS asks for an error where a broken observer plugin would only be recorded."""
    value = (os.environ if environ is None else environ).get(STRICT_VARIABLE, "")
    return value.strip().lower() in ("1", "true", "yes", "on")


def _entry_points(group: str) -> Iterable[EntryPoint]:
    try:
        return entry_points(group=group)
    except Exception as error:  # noqa: BLE001 - metadata is other people's files: anything may be wrong with them
        logger.warning("cannot read all entry points at once (%r), reading one distribution after the other", error)
        return _entry_points_one_by_one(group)


def _entry_points_one_by_one(group: str) -> list[EntryPoint]:
    """As ``entry_points``, but a distribution whose metadata can't be read hides only itself."""
    found: dict[str, list[EntryPoint]] = {}
    for distribution in distributions():
        name, own = _read(distribution, group)
        found.setdefault(name, own)  # the first on the path is the one that gets imported
    return [entry_point for own in found.values() for entry_point in own]


def _read(distribution: Distribution, group: str) -> tuple[str, list[EntryPoint]]:
    try:
        own = list(distribution.entry_points.select(group=group))
        return re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower(), own
    except Exception as error:  # noqa: BLE001 - as above
        logger.warning("unreadable metadata of %s: %r; reinstall or delete it", _place(distribution), error)
        return f"unreadable {_place(distribution)}", []


def _place(distribution: Distribution) -> object:
    return getattr(distribution, "_path", distribution)


def _source(entry_point: EntryPoint) -> Source:
    name, version = _identity(entry_point.dist)
    return Source(entry_point.group, entry_point.name, entry_point.value, name, version)


def _identity(distribution: Distribution | None) -> tuple[str, str]:
    if distribution is None:
        return "an unknown distribution", UNKNOWN_VERSION
    try:
        name, version = distribution.metadata["Name"], distribution.version
    except Exception:  # noqa: BLE001 - a half-removed distribution has entry points and no METADATA
        name, version = None, None
    return name or f"the distribution at {_place(distribution)}", version or UNKNOWN_VERSION
