"""tools/engines.py: what is missing, what it says where it may not install, and what it refuses."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools/engines.py"
PRESENT = {"libc.so.6": "libc6"}
ABSENT = {"libkvcore-absent.so.1": "libkvcore-absent1"}


@pytest.fixture(scope="module")
def engines() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engines_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["engines_script"] = module
    spec.loader.exec_module(module)
    return module


def test_only_what_the_linker_does_not_find_is_missing(engines: ModuleType) -> None:
    assert engines.missing_packages({**PRESENT, **ABSENT}) == ["libkvcore-absent1"]


def test_nothing_is_run_where_nothing_is_missing(engines: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.subprocess, "run", lambda *_, **__: pytest.fail("ran a command"))
    engines.install_libraries("some", PRESENT, may_install=True)


def test_who_may_not_install_is_told_the_command(engines: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.subprocess, "run", lambda *_, **__: pytest.fail("ran a command"))
    with pytest.raises(engines.CannotInstall, match="sudo apt-get install .*libkvcore-absent1"):
        engines.install_libraries("some", {**PRESENT, **ABSENT}, may_install=False)


def test_a_failed_installation_of_libraries_is_told(engines: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "apt_commands", lambda packages: [["false", *packages]])
    with pytest.raises(engines.CannotInstall, match="needs libkvcore-absent1: false failed"):
        engines.install_libraries("some", ABSENT, may_install=True)


def test_a_library_that_stays_missing_is_told(engines: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "apt_commands", lambda packages: [["true", *packages]])
    with pytest.raises(engines.CannotInstall, match="run ldconfig"):
        engines.install_libraries("some", ABSENT, may_install=True)


def test_wheels_that_pip_cannot_find_end_with_what_to_do(engines: ModuleType) -> None:
    # A group that the project does not have: pip refuses at once, without asking anybody.
    with pytest.raises(engines.CannotInstall, match=r'ENGINES="nixl mooncake"'):
        engines.install_wheels("absent", ("--no-deps", "--no-index"))


def test_a_backend_that_does_not_load_is_told(engines: ModuleType) -> None:
    with pytest.raises(engines.CannotInstall, match="BackendNotFound"):
        engines.check_loads("absent")


def test_an_unknown_engine_is_refused(engines: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert engines.main(["absent"]) == 1
    assert "there are: nixl, mooncake" in capsys.readouterr().err
