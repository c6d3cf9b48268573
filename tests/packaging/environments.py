"""Clean environments for the built wheels: one per Python, made once a session."""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"

# The oldest Python once more, with the oldest dependencies that core says it can live with.
OLDEST = "3.10-oldest"

INSTALL_LIMIT_S = 240
RUN_LIMIT_S = 400


def run(
    *command: str | Path, cwd: Path, timeout: float = RUN_LIMIT_S, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder of its own, with nothing of this process's Python set-up."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, "NO_COLOR": "1", **extra},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def succeed(*command: str | Path, cwd: Path, timeout: float = RUN_LIMIT_S, **extra: str) -> str:
    """Run a command that has to succeed; its standard output."""
    ran = run(*command, cwd=cwd, timeout=timeout, **extra)
    assert ran.returncode == 0, f"{' '.join(map(str, command))}: exit {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def pip(python: Path | str, *arguments: str | Path, cwd: Path) -> str:
    """This environment's pip, at work on another one: the clean ones then hold nothing but what was asked for."""
    command = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", python, *arguments)
    return succeed(*command, cwd=cwd, timeout=INSTALL_LIMIT_S)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that the worker processes of one test run share."""
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def find_python(name: str) -> Path | None:
    """An interpreter for this environment (``3.12``): the running one, one of pyenv's, or one on PATH."""
    version = name.partition("-")[0]
    if version == RUNNING:
        return Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [path / "bin/python" for path in sorted((pyenv / "versions").glob(f"{version}.*"), reverse=True)]
    candidates += [Path(found)] if (found := shutil.which(f"python{version}")) else []
    probe = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    for candidate in candidates:
        # A name on PATH may be a pyenv shim that only says which versions would offer it.
        if candidate.exists() and run(candidate, "-c", probe, cwd=Path("/")).stdout.strip() == version:
            return candidate
    return None


def newest_python() -> str:
    """The newest of ``PYTHONS`` on this machine; the running one is always there."""
    return [version for version in PYTHONS if version == RUNNING or find_python(version)][-1]


def distributions() -> dict[str, Path]:
    """The folder of each distribution of the workspace, by the distribution's name."""
    folders = [ROOT / "core", *sorted((ROOT / "plugins").iterdir()), ROOT / "conformance"]
    found = [folder for folder in folders if (folder / "pyproject.toml").exists()]
    return {project(folder)["name"]: folder for folder in found}


def project(folder: Path) -> dict[str, Any]:
    """The ``[project]`` table of the distribution in a folder."""
    table: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def lower_bounds() -> list[str]:
    """Each requirement that core states, pinned to its lower bound: ``numpy>=1.26`` becomes ``numpy==1.26``."""
    bounds = [re.match(r"([\w-]+)>=([\d.]+)", text) for text in project(ROOT / "core")["dependencies"]]
    assert all(bounds), "every dependency of core states a lower bound"
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound]


@dataclass
class Clean:
    """An environment with the wheels and their dependencies, and a folder with nothing in it to run from."""

    name: str
    python: Path
    home: Path
    tools: Path | None = None
    facts_alone: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The Python's version, without what else is special about this environment."""
        return self.name.partition("-")[0]

    @property
    def command(self) -> Path:
        """The installed ``kv-core`` command."""
        return self.python.parent / "kv-core"

    @property
    def site_packages(self) -> Path:
        """Where the wheels were unpacked."""
        return self.home / f"venv/lib/python{self.version}/site-packages"

    def run(self, *command: str | Path, timeout: float = RUN_LIMIT_S, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a command from an empty folder; ``extra``: further variables of its environment."""
        empty = self.home / "empty"
        empty.mkdir(exist_ok=True)
        ran = run(*command, cwd=empty, timeout=timeout, **extra)
        assert not list(empty.iterdir()), f"{command} left something behind in the working folder"
        return ran


def build_clean(name: str, home: Path, wheels: dict[str, Path]) -> Clean:
    """Make the environment: core first and alone, asked a few questions, then every other wheel, and core's extras."""
    base = find_python(name)
    assert base is not None, f"no Python for {name}"
    succeed(base, "-m", "venv", "--without-pip", home / "venv", cwd=home)
    clean = Clean(name, home / "venv/bin/python", home)
    constraints = home / "constraints.txt"
    constraints.write_text("\n".join(lower_bounds() if name == OLDEST else []), encoding="utf-8")
    install = ("install", "--no-compile", "--constraint", constraints)
    pip(clean.python, *install, wheels["kv-core"], cwd=home)
    clean.facts_alone = {
        "import": clean.run(clean.python, "-c", "import kv_core; print(kv_core.list_backends())"),
        "backends": clean.run(clean.command, "backends", "--json"),
    }
    pip(clean.python, *install, *wheels.values(), f"{wheels['kv-core']}[metrics,otel]", cwd=home)
    return clean
