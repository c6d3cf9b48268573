"""The wheels in a clean environment of each Python, used from an empty folder: what somebody gets who installs them.

No engine is installed there. Each environment is one class of tests, so that one process makes it and uses it.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.environments import (
    OLDEST,
    ROOT,
    RUN_LIMIT_S,
    Clean,
    distributions,
    lower_bounds,
    newest_python,
    pip,
    project,
    run,
    succeed,
)

# The first test of each Python waits for its environment.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PURE = ("contract", "layout", "protocol")
# Long, for what they go through in numbers and not for what they use of Python or of a library.
LEFT_OUT = ("--ignore=core/tests/layout/test_topologies.py", "--ignore=core/tests/protocol/test_endings.py")
EMBEDDED = "fake"

# Prints the modules of a package that were imported, all of them.
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            print(module.name)
"""


def rows(text: str) -> dict[str, dict[str, Any]]:
    """What ``kv-core backends --json`` printed, by the backend's name."""
    return {row["name"]: row for row in json.loads(text)["backends"]}


def announced() -> set[str]:
    """The names of all backends of the workspace."""
    tables = [project(folder) for folder in distributions().values()]
    return {name for table in tables for name in table.get("entry-points", {}).get("kv_core.backends", {})}


def run_pytest(clean: Clean, root: Path, *folders: str, path: str) -> None:
    """Run the tests in these folders with the environment's Python; they pass, and there are some."""
    succeed(clean.python, "-c", f"import kv_core; assert kv_core.__file__.startswith({str(clean.home)!r})", cwd=root)
    arguments = ("-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu", *LEFT_OUT, *folders)
    ran = run(clean.python, "-m", "pytest", *arguments, cwd=root, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1")
    assert ran.returncode == 0, f"Python {clean.name}:\n{ran.stdout}\n{ran.stderr}"
    assert " passed" in ran.stdout


@pytest.fixture(scope="module")
def core_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Core's tests and their configuration without core's sources, so that only the installed wheel can be imported."""
    root = tmp_path_factory.mktemp("workspace")
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copytree(ROOT / "core/tests", root / "core/tests", ignore=shutil.ignore_patterns("__pycache__"))
    return root


class Everywhere:
    """What has to be so on every Python."""

    environment = ""

    def test_the_import_comes_from_the_wheel(self, clean: Clean) -> None:
        ran = clean.run(
            clean.python, "-W", "error", "-c", "import kv_core, sys; print(kv_core.__file__); print(sys.version)"
        )
        assert ran.returncode == 0, ran.stderr
        file, version = ran.stdout.splitlines()[:2]
        assert file.startswith(str(clean.home))
        assert version.startswith(clean.version)

    def test_every_module_of_core_and_of_the_embedded_backend_imports(self, clean: Clean) -> None:
        ran = clean.run(clean.python, "-c", IMPORT_ALL, "kv_core", "kv_fake")
        assert ran.returncode == 0, ran.stderr
        assert {"kv_core.protocol.messages", "kv_core.cli.app", "kv_fake.transport"} <= set(ran.stdout.split())

    def test_importing_core_loads_no_backend_and_no_heavy_library(self, clean: Clean) -> None:
        unwanted = ("kv_fake", "torch", "aiohttp", "typer", "zmq")
        ran = clean.run(clean.python, "-c", f"import kv_core, sys; print([m for m in {unwanted} if m in sys.modules])")
        assert ran.stdout.strip() == "[]", ran.stderr

    def test_core_alone_imports_and_knows_no_backend(self, clean: Clean) -> None:
        imported = clean.facts_alone["import"]
        assert imported.returncode == 0, imported.stderr
        assert imported.stdout.split() in (["[]"], ["()"], ["{}"])

    def test_core_alone_lists_no_backend(self, clean: Clean) -> None:
        listed = clean.facts_alone["backends"]
        assert listed.returncode == 0, listed.stderr
        assert rows(listed.stdout) == {}

    def test_every_plugin_imports_without_its_engine(self, clean: Clean) -> None:
        modules = sorted(name.replace("-", "_") for name in distributions())
        ran = clean.run(clean.python, "-W", "error", "-c", f"import {', '.join(modules)}")
        assert ran.returncode == 0, ran.stderr
        compiled = [clean.site_packages / module for module in modules]
        ran = clean.run(clean.python, "-W", "error", "-m", "compileall", "-q", *compiled)
        assert ran.returncode == 0, ran.stdout

    def test_the_command_lists_all_and_says_what_is_missing(self, clean: Clean) -> None:
        listed = clean.run(clean.command, "backends", "--json")
        assert listed.returncode == 0, listed.stderr
        found = rows(listed.stdout)
        assert set(found) == announced()
        assert found.pop(EMBEDDED)["status"] == "ok"
        for name, row in found.items():
            assert row["status"] == "broken", row
            assert row["error"], row
            assert "install" in f"{row['error']} {row['hint']}", f"{name} says no mend: {row}"

    def test_a_missing_engine_is_a_typed_error_and_hides_no_other_backend(self, clean: Clean) -> None:
        program = (
            "import sys, kv_core\n"
            "for name in sys.argv[1:]:\n"
            "    try: kv_core.load_backend(name)\n"
            "    except kv_core.BackendLoadError as error: print(name, len(error.hint) > 20)\n"
            f"print(kv_core.load_backend({EMBEDDED!r}).info.name)\n"
        )
        missing = sorted(announced() - {EMBEDDED})
        ran = clean.run(clean.python, "-W", "error", "-c", program, *missing)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines() == [*(f"{name} True" for name in missing), EMBEDDED]

    def test_no_wheel_brings_an_engine_or_torch(self, clean: Clean) -> None:
        frozen = pip(clean.python, "freeze", cwd=clean.home).lower().splitlines()
        names = [re.split(r"[=@ ]", line)[0] for line in frozen]
        assert set(distributions()) <= set(names)
        assert not [name for name in names if re.match(r"torch|nixl|mooncake|amd-mori|nvidia|cuda|triton", name)]

    def test_the_demo_moves_every_byte(self, clean: Clean) -> None:
        small = ("--requests", "20", "--pages", "8", "--layers", "4", "--page-bytes", "4096")
        ran = clean.run(clean.command, "demo", "--backend", EMBEDDED, *small, "--json")
        assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
        document = json.loads(ran.stdout)
        assert document["requests"] == 20
        assert not document["failures"]

    def test_the_conformance_suite_runs_from_its_wheel(self, clean: Clean) -> None:
        self.run_suite(clean)

    @staticmethod
    def run_suite(clean: Clean, **extra: str) -> None:
        # Some of it; `make conformance-wheels` runs all of it. That the working folder stays empty is seen by clean.run().
        some = [part for one in ("KV-ID", "KV-XFER-1", "KV-POLL-1", "KV-CLEAR-1") for part in ("--only", one)]
        command: list[str | Path] = [clean.python, "-m", "kv_conformance", EMBEDDED, "--accept", "partial", "--json"]
        ran = clean.run(*command, *some, timeout=RUN_LIMIT_S, **extra)
        assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
        report = json.loads(ran.stdout)
        ended = {one["id"]: one["outcome"] for one in report["checks"] if one["outcome"] != "not_run"}
        assert len(ended) > 8
        assert set(ended.values()) == {"passed"}, ended

    def test_the_requirements_fit_together(self, clean: Clean) -> None:
        assert "broken" not in pip(clean.python, "check", cwd=clean.home)


class Pure(Everywhere):
    """The pure packages' own tests as well, against the wheel: on the oldest and on the newest, which bound the others."""

    pure_tests: tuple[str, ...] = PURE

    def test_the_conformance_suite_runs_with_warnings_as_errors(self, clean: Clean) -> None:
        self.run_suite(clean, PYTEST_ADDOPTS="-W error --strict-markers --strict-config")

    def test_the_pure_packages_pass_their_tests(self, clean: Clean, core_tests: Path, tools: Path) -> None:
        run_pytest(clean, core_tests, *(f"core/tests/{name}" for name in self.pure_tests), path=str(tools))


class Newest(Pure):
    """And the registry's tests with each pluggy that core allows; of the protocol's only what meets a library: the codec."""

    pure_tests = ("contract", "layout", "protocol/test_codec.py")

    @pytest.mark.parametrize("pluggy", ["1.6.0", "1.7.0"])
    def test_the_registry_passes_its_tests_with_each_pluggy(
        self, clean: Clean, core_tests: Path, tools: Path, tmp_path: Path, pluggy: str
    ) -> None:
        pip(clean.python, "install", "--target", tmp_path, f"pluggy=={pluggy}", cwd=tmp_path)
        path = f"{tmp_path}:{tools}"
        probe = "from importlib.metadata import version; import pluggy; print(version('pluggy'), pluggy.__version__)"
        assert succeed(clean.python, "-c", probe, cwd=core_tests, PYTHONPATH=path).split() == [pluggy, pluggy]
        run_pytest(clean, core_tests, "core/tests/registry", path=path)


class TestOldest(Pure):
    """The oldest Python with the oldest dependencies."""

    environment = OLDEST

    def test_the_oldest_dependencies_are_the_stated_ones(self, clean: Clean) -> None:
        frozen = {
            line.split("==")[0].lower(): line for line in pip(clean.python, "freeze", cwd=clean.home).splitlines()
        }
        bounds = lower_bounds()
        assert len(bounds) >= 9
        for bound in bounds:
            name, version = bound.split("==")
            assert frozen[name].split("==")[1].startswith(version)


def on(version: str) -> type[Everywhere]:
    """The class of tests of a Python."""
    base = Newest if version == newest_python() else Everywhere
    return type(f"TestPython{version.replace('.', '')}", (base,), {"environment": version, "__module__": __name__})


# The one that takes longest, which is the newest, first.
TestPython313 = on("3.13")
TestPython312 = on("3.12")
TestPython311 = on("3.11")
TestPython310 = on("3.10")
