"""The wheels in a clean environment of each Python, used from an empty folder: what somebody gets who installs them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.environments import OLDEST, ROOT, RUNNING, Clean, lower_bounds, pip, run, succeed

# The first test of each Python waits for its environment.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PURE = ("contract", "layout", "protocol")


def names(text: str) -> list[str]:
    """The names of the backends in what ``kv-core backends --json`` printed."""
    document = json.loads(text)
    rows: list[dict[str, Any]] = document["backends"] if isinstance(document, dict) else document
    return [row["name"] for row in rows]


def test_the_import_comes_from_the_wheel(clean: Clean) -> None:
    ran = clean.run(
        clean.python, "-W", "error", "-c", "import kv_core, sys; print(kv_core.__file__); print(sys.version)"
    )
    assert ran.returncode == 0, ran.stderr
    file, version = ran.stdout.splitlines()[:2]
    assert file.startswith(str(clean.home))
    assert version.startswith(clean.version)


def test_importing_core_loads_no_backend_and_no_heavy_library(clean: Clean) -> None:
    unwanted = ("kv_fake", "torch", "aiohttp", "typer", "zmq")
    ran = clean.run(clean.python, "-c", f"import kv_core, sys; print([m for m in {unwanted} if m in sys.modules])")
    assert ran.stdout.strip() == "[]", ran.stderr


def test_core_alone_imports_and_knows_no_backend(clean: Clean) -> None:
    imported = clean.facts_alone["import"]
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.split() in (["[]"], ["()"], ["{}"])


def test_core_alone_lists_no_backend(clean: Clean) -> None:
    listed = clean.facts_alone["backends"]
    assert listed.returncode == 0, listed.stderr
    assert names(listed.stdout) == []


def test_the_command_lists_the_embedded_backend(clean: Clean) -> None:
    listed = clean.run(clean.command, "backends", "--json")
    assert listed.returncode == 0, listed.stderr
    assert names(listed.stdout) == ["fake"]


def test_the_demo_moves_every_byte(clean: Clean) -> None:
    ran = clean.run(clean.command, "demo", "--backend", "fake", "--requests", "20", "--json")
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    document = json.loads(ran.stdout)
    assert document["requests"] == 20
    assert not document["failures"]


def test_the_requirements_fit_together(clean: Clean) -> None:
    assert "broken" not in pip(clean.python, "check", cwd=clean.home)


def test_the_oldest_dependencies_are_the_stated_ones(clean_for: Callable[[str], Clean]) -> None:
    clean = clean_for(OLDEST)
    frozen = {line.split("==")[0].lower(): line for line in pip(clean.python, "freeze", cwd=clean.home).splitlines()}
    bounds = lower_bounds()
    assert len(bounds) >= 9
    for bound in bounds:
        name, version = bound.split("==")
        assert frozen[name].split("==")[1].startswith(version)


@pytest.fixture(scope="module")
def core_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Core's tests and their configuration without core's sources, so that only the installed wheel can be imported."""
    root = tmp_path_factory.mktemp("workspace")
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copytree(ROOT / "core/tests", root / "core/tests", ignore=shutil.ignore_patterns("__pycache__"))
    return root


def run_pytest(clean: Clean, root: Path, *folders: str, path: str) -> None:
    """Run the tests in these folders with the environment's Python; they pass, and there are some."""
    succeed(clean.python, "-c", f"import kv_core; assert kv_core.__file__.startswith({str(clean.home)!r})", cwd=root)
    arguments = ("-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu", *folders)
    ran = run(clean.python, "-m", "pytest", *arguments, cwd=root, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1")
    assert ran.returncode == 0, f"Python {clean.name}:\n{ran.stdout}\n{ran.stderr}"
    assert " passed" in ran.stdout


def test_the_pure_packages_pass_their_tests(
    clean: Clean, core_tests: Path, test_tools: Callable[[Clean], Path]
) -> None:
    folders = [f"core/tests/{name}" for name in PURE]
    run_pytest(clean, core_tests, *folders, path=str(test_tools(clean)))


@pytest.mark.parametrize("pluggy", ["1.6.0", "1.7.0"])
def test_the_registry_passes_its_tests_with_each_pluggy(
    clean_for: Callable[[str], Clean],
    core_tests: Path,
    test_tools: Callable[[Clean], Path],
    tmp_path: Path,
    pluggy: str,
) -> None:
    clean = clean_for(RUNNING)
    pip(clean.python, "install", "--target", tmp_path, f"pluggy=={pluggy}", cwd=tmp_path)
    path = f"{tmp_path}:{test_tools(clean)}"
    probe = "from importlib.metadata import version; import pluggy; print(version('pluggy'), pluggy.__version__)"
    assert succeed(clean.python, "-c", probe, cwd=core_tests, PYTHONPATH=path).split() == [pluggy, pluggy]
    run_pytest(clean, core_tests, "core/tests/registry", path=path)
