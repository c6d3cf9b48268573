"""The distributions of backends and of the engines that they ask for: versions, and the files that each says it installed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution

DEPTH = 3
"""How far requirements are followed: plugin, engine, the engine's parts."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Wheel:
    """An installed distribution. ``files``: absolute path to the hash that its RECORD has, of what has one. ``wanted_by``: backends."""

    name: str
    version: str
    files: dict[str, str]
    missing: tuple[str, ...]
    wanted_by: frozenset[str]


def engine_wheels(plugins: dict[str, Iterable[str]]) -> list[Wheel]:
    """What the backends (by name: their distributions) ask for, by extra or not, as far as it is installed; sorted by name."""
    wanted: dict[str, set[str]] = {}
    for backend, names in plugins.items():
        for name in names:
            for each in _closure(name):
                wanted.setdefault(each, set()).add(backend)
    return [_wheel(name, frozenset(wanted[name])) for name in sorted(wanted)]


def _closure(root: str) -> set[str]:
    found: set[str] = set()
    layer = {canonical(root)}
    for _ in range(DEPTH):
        installed = {name for name in layer - found if _find(name) is not None}
        found |= installed
        layer = {canonical(required) for name in installed for required in _requirements(name)}
    return found


def canonical(name: str) -> str:
    """A distribution's name as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _find(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _requirements(name: str) -> Iterator[str]:
    known = _find(name)
    for line in (known.requires if known is not None else None) or []:
        match = _NAME.match(line)
        if match:
            yield match[0]


def _wheel(name: str, wanted_by: frozenset[str]) -> Wheel:
    known = distribution(name)
    files: dict[str, str] = {}
    missing: list[str] = []
    for entry in known.files or []:
        if entry.hash is None or entry.parts[0] == ".." or ".dist-info" in entry.parts[0]:  # only what can be imported
            continue
        path = os.path.normpath(str(entry.locate()))
        files[path] = entry.hash.value
        if not os.path.lexists(path):
            missing.append(str(entry))
    return Wheel(known.metadata["Name"], known.version, files, tuple(missing), wanted_by)
