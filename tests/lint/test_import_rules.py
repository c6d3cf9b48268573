"""The import contracts of the root pyproject.toml refuse what they are there to refuse."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ("kv_fake", "kv_mooncake", "kv_mori", "kv_nixl")
LAYERS = ("contract", "protocol", "layout", "runtime", "registry", "observe", "events", "cli")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Empty packages of the workspace's names, with the workspace's contracts."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in (*PLUGINS, "kv_core", *(f"kv_core/{layer}" for layer in LAYERS)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    return tmp_path


def lint_imports(packages: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sysconfig.get_path("scripts")) / "lint-imports", "--no-logo", "--no-cache"],
        cwd=packages,
        env={**os.environ, "PYTHONPATH": str(packages), "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_empty_packages_break_no_contract(packages: Path) -> None:
    ran = lint_imports(packages)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(
    ("place", "statement", "expected"),
    [
        ("protocol", "import kv_core.layout", "kv_core.protocol is not allowed to import kv_core.layout"),
        ("runtime", "import kv_core.registry", "kv_core.runtime is not allowed to import kv_core.registry"),
        ("contract", "import threading", "kv_core.contract is not allowed to import threading"),
        ("layout", "import time", "kv_core.layout is not allowed to import time"),
        ("protocol", "import random", "kv_core.protocol is not allowed to import random"),
        ("registry", "import kv_fake", "kv_core is not allowed to import kv_fake"),
        ("runtime", "import torch", "kv_core is not allowed to import torch"),
    ],
)
def test_a_forbidden_import_is_refused(packages: Path, place: str, statement: str, expected: str) -> None:
    (packages / "kv_core" / place / "wrong.py").write_text(f"{statement}\n", encoding="utf-8")
    ran = lint_imports(packages)
    assert ran.returncode == 1, ran.stdout
    assert expected in ran.stdout


@pytest.mark.parametrize(
    ("plugin", "statement", "expected"),
    [
        ("kv_nixl", "from kv_core.runtime import anything", "kv_nixl.wrong -> kv_core.runtime"),
        ("kv_fake", "import kv_core.protocol", "kv_fake.wrong -> kv_core.protocol"),
        ("kv_mori", "import kv_core.registry", "kv_mori.wrong -> kv_core.registry"),
        ("kv_mooncake", "import kv_fake", "kv_mooncake is not allowed to import kv_fake"),
        ("kv_fake", "import kv_nixl", "kv_fake is not allowed to import kv_nixl"),
    ],
)
def test_a_plugin_that_reaches_too_far_is_refused(packages: Path, plugin: str, statement: str, expected: str) -> None:
    (packages / plugin / "wrong.py").write_text(f"{statement}\n", encoding="utf-8")
    ran = lint_imports(packages)
    assert ran.returncode == 1, ran.stdout
    assert expected in ran.stdout


def test_a_plugin_may_use_the_public_names_and_the_contract(packages: Path) -> None:
    (packages / "kv_core/__init__.py").write_text("import kv_core.runtime\n", encoding="utf-8")
    (packages / "kv_nixl/fine.py").write_text("import kv_core\nimport kv_core.contract\n", encoding="utf-8")
    ran = lint_imports(packages)
    assert ran.returncode == 0, ran.stdout


def test_a_package_without_a_place_is_refused(packages: Path) -> None:
    (packages / "kv_core/elsewhere.py").touch()
    ran = lint_imports(packages)
    assert ran.returncode == 1, ran.stdout
    assert "elsewhere" in ran.stdout
