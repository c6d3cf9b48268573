"""Fixtures: the built wheels, and a clean environment with them for every Python that is found."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.environments import (
    INSTALL_LIMIT_S,
    OLDEST,
    PYTHONS,
    ROOT,
    RUNNING,
    Clean,
    build_clean,
    distributions,
    find_python,
    pip,
    succeed,
)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each distribution, built from its own source distribution."""
    built = {}
    for name, folder in distributions().items():
        out = tmp_path_factory.mktemp(f"dist-{name}")
        build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", out, folder)
        succeed(*build, cwd=ROOT, timeout=INSTALL_LIMIT_S)
        (built[name],) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def clean_for(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Clean]:
    """The clean environment of a Python version, made when it is first asked for; skips where there is no such Python."""
    made: dict[str, Clean] = {}

    def get(name: str) -> Clean:
        if find_python(name) is None:
            version = name.partition("-")[0]
            pytest.skip(f"no Python {version} on this machine (looked at pyenv's versions and for python{version})")
        if name not in made:
            made[name] = build_clean(name, tmp_path_factory.mktemp(f"python{name}"), wheels)
        return made[name]

    return get


@pytest.fixture(scope="session", params=(*PYTHONS, OLDEST))
def clean(request: pytest.FixtureRequest, clean_for: Callable[[str], Clean]) -> Clean:
    return clean_for(request.param)


@pytest.fixture(scope="session")
def test_tools(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Clean], Path]:
    """A folder with pytest and its plugins for an environment, beside it and not in it."""
    made: dict[str, Path] = {}

    def get(clean: Clean) -> Path:
        if clean.name not in made:
            folder = tmp_path_factory.mktemp(f"tools{clean.name}")
            tools = ("pytest>=8.2", "pytest-timeout>=2.3", "hypothesis>=6.100")
            pip(clean.python, "install", "--no-compile", "--target", folder, *tools, cwd=folder)
            made[clean.name] = folder
        return made[clean.name]

    return get


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say on which Pythons the wheels were tested, and on which not: a skip is easily overlooked."""
    ran = any("tests/packaging" in report.nodeid for report in terminalreporter.stats.get("passed", []))
    if ran:
        found = [version for version in PYTHONS if find_python(version)]
        missing = [version for version in PYTHONS if version not in found]
        terminalreporter.write_line(
            f"wheels tested on {len(found)} of {len(PYTHONS)} Pythons: {', '.join(found)} (running: {RUNNING})"
            + (f"; missing: {', '.join(missing)}" if missing else "")
        )
