"""Fixtures: the built wheels, and a clean environment with them for every Python that is found."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.packaging.environments import (
    INSTALL_LIMIT_S,
    ROOT,
    Clean,
    build_clean,
    distributions,
    find_python,
    locked,
    pip,
    succeed,
)

LONG = (
    "test_nixl_conformance", "test_mooncake_conformance", "tests/packaging/", "test_mori_conformance",
    "test_fake_conformance",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, the longest ones come first, so that nobody waits for them at the end: those
    that mostly wait beside those that mostly work.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: next((at for at, part in enumerate(LONG) if part in item.nodeid), len(LONG)))


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each distribution, built from its own source distribution, once for all processes of this run."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheels"

    def build(name: str, folder: Path) -> None:
        command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", shared / name, folder)
        succeed(*command, cwd=ROOT, timeout=INSTALL_LIMIT_S)

    shared.mkdir(exist_ok=True)
    with locked(shared / "lock"), ThreadPoolExecutor(2) as pool:
        missing = {name: folder for name, folder in distributions().items() if not (shared / name).exists()}
        list(pool.map(build, missing, missing.values()))
    built = {}
    for name in distributions():
        (built[name],) = (shared / name).glob("*.whl")
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


@pytest.fixture
def clean(request: pytest.FixtureRequest, clean_for: Callable[[str], Clean]) -> Clean:
    """The environment that the test's class is about."""
    return clean_for(request.cls.environment)


@pytest.fixture
def tools(clean: Clean, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pytest and its plugins for an environment, beside it and not in it."""
    if clean.tools is None:
        folder = tmp_path_factory.mktemp(f"tools{clean.name}")
        wanted = ("pytest>=8.2", "pytest-timeout>=2.3", "hypothesis>=6.100")
        pip(clean.python, "install", "--no-compile", "--target", folder, *wanted, cwd=folder)
        clean.tools = folder
    return clean.tools
