"""What a report says of the place and of what is installed there; read from metadata, nothing of the backend is imported."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path
from typing import Any

from kv_core import KV_CORE_API, list_backends

GIT_LIMIT_S = 10.0


def tested(backend: str) -> dict[str, Any]:
    """Suite, core and backend with their versions, and the distributions that may matter."""
    found = next((one for one in list_backends() if one.name == backend), None)
    names = found.distributions if found else ()
    return {
        "suite": version("kv-conformance"),
        "kv_core": {"version": version("kv-core"), "api": list(KV_CORE_API)},
        "backend": backend,
        "installed": {"distribution": ", ".join(names), "version": ", ".join(found.versions) if found else ""},
        "distributions": installed_distributions(names),
        "git_revision": git_revision(Path.cwd()),
    }


def place() -> dict[str, Any]:
    """The machine."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "os": _os_name(),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpus": os.cpu_count() or 0,
    }


def installed_distributions(backends: tuple[str, ...]) -> dict[str, str]:
    """Versions by name: everything called kv-*, these distributions, and what these require, extras too, if it is there."""
    found = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name and re.match(r"kv[-_.]", name, re.IGNORECASE):
            found[_canonical(name)] = distribution.version
    for name in backends:
        for needed in (name, *_required(name)):
            try:
                found[_canonical(needed)] = version(needed)
            except PackageNotFoundError:
                continue  # of an extra that is not installed here
    return dict(sorted(found.items()))


def git_revision(folder: Path) -> str:
    """The revision that is checked out there, with "+" if something differs from it; empty if it is no git checkout."""
    revision = _git(folder, "rev-parse", "HEAD")
    return revision + ("+" if revision and _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ("git", *arguments),  # noqa: S607 - whichever is on the path
            cwd=folder, capture_output=True, text=True, timeout=GIT_LIMIT_S, check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""  # no git, or one that does not answer: the report does without
    return done.stdout.strip() if done.returncode == 0 else ""


def _required(name: str) -> list[str]:
    try:
        lines = requires(name) or []
    except PackageNotFoundError:
        return []
    return [matched[0] for line in lines if (matched := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line))]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()
