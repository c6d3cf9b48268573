"""The repository check finds each thing that it is there for, and finds nothing in this workspace."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools/check_repo.py"


@pytest.fixture(scope="module")
def check_repo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_repo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_repo"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace that breaks no rule."""
    for folder, dist, module, extra in (
        ("core", "kv-core", "kv_core", ""),
        ("plugins/kv_other", "kv-other", "kv_other", '[project.entry-points."kv_core.backends"]\nother = "kv_other"\n'),
    ):
        source = tmp_path / folder / "src" / module
        source.mkdir(parents=True)
        (source / "py.typed").touch()
        (tmp_path / folder / "tests").mkdir()
        (tmp_path / folder / "README.md").touch()
        (tmp_path / folder / "pyproject.toml").write_text(
            f'[project]\nname = "{dist}"\nversion = "1.2.3"\ndependencies = []\n{extra}', encoding="utf-8"
        )
        (source / "__init__.py").write_text(
            f'from importlib.metadata import version\n\n__version__ = version("{dist}")\n', encoding="utf-8"
        )
    return tmp_path


def rules(check_repo: ModuleType, workspace: Path) -> list[str]:
    return [finding.rule for finding in check_repo.check(workspace)]


def test_a_clean_workspace_has_no_findings(check_repo: ModuleType, workspace: Path) -> None:
    assert check_repo.check(workspace) == []


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("import pickle\n", "pickle"),
        ("from pickle import loads\n", "pickle"),
        ("import time\nnow = time.time()\n", "wall-clock"),
        ("from time import time\n", "wall-clock"),
        ("import threading\nthreading.Thread(target=print, daemon=True)\n", "daemon-thread"),
        ("import threading\nt = threading.Thread(target=print)\nt.daemon = True\n", "daemon-thread"),
        ("try:\n    print()\nexcept OSError:\n    pass\n", "swallowed"),
        ("x = 1  # " + "TO" + "DO later\n", "leftover"),
        ("x = 1\n" * 601, "module-length"),
        ("def f():\n" + "    x = 1\n" * 60, "function-length"),
        ('backend = "other"\n', "backend-name"),
        ('backend = "nixl"\n', "backend-name"),
        ('hint = "pip install kv-other first"\n', "backend-name"),
        ('module = "kv_other.transport"\n', "backend-name"),
        ("name = 'kv'\nhint = f'{name}: use MOONCAKE'\n", "backend-name"),
    ],
)
def test_each_broken_rule_is_found(check_repo: ModuleType, workspace: Path, source: str, rule: str) -> None:
    (workspace / "core/src/kv_core/broken.py").write_text(source, encoding="utf-8")
    assert rules(check_repo, workspace) == [rule]


@pytest.mark.parametrize(
    "source",
    [
        "import time\nnow = time.monotonic()\n",
        "def f():\n" + "    x = 1\n" * 59,
        '"""An engine of addresses, as nixl is one."""\n',
        'FAKE_BOOTSTRAP_HOST = "FAKE_BOOTSTRAP_HOST"\n',
        'text = "another place, otherwise"\n',
    ],
)
def test_what_is_allowed_is_not_found(check_repo: ModuleType, workspace: Path, source: str) -> None:
    (workspace / "core/src/kv_core/fine.py").write_text(source, encoding="utf-8")
    assert check_repo.check(workspace) == []


def test_a_plugin_may_name_itself(check_repo: ModuleType, workspace: Path) -> None:
    (workspace / "plugins/kv_other/src/kv_other/names.py").write_text('NAME = "other"\n', encoding="utf-8")
    assert check_repo.check(workspace) == []


def test_unequal_versions_are_found(check_repo: ModuleType, workspace: Path) -> None:
    project = workspace / "plugins/kv_other/pyproject.toml"
    project.write_text(project.read_text(encoding="utf-8").replace("1.2.3", "1.2.4"), encoding="utf-8")
    (finding,) = check_repo.check(workspace)
    assert (finding.path, finding.rule) == ("plugins/kv_other/pyproject.toml", "versions")
    assert "1.2.4" in finding.text
    assert "1.2.3" in finding.text


@pytest.mark.parametrize("requirement", ["torch", "torch>=2", "nixl", "nixl-cu12==1.5.1", "mooncake-transfer-engine"])
def test_an_engine_that_is_required_is_found(check_repo: ModuleType, workspace: Path, requirement: str) -> None:
    project = workspace / "plugins/kv_other/pyproject.toml"
    text = project.read_text(encoding="utf-8").replace("dependencies = []", f'dependencies = ["{requirement}"]')
    project.write_text(text, encoding="utf-8")
    assert rules(check_repo, workspace) == ["engine-by-extra"]


def test_an_engine_in_an_extra_is_allowed(check_repo: ModuleType, workspace: Path) -> None:
    project = workspace / "plugins/kv_other/pyproject.toml"
    text = project.read_text(encoding="utf-8").replace("dependencies = []", 'dependencies = ["kv-core", "torchless"]')
    project.write_text(f'{text}[project.optional-dependencies]\ngpu = ["torch"]\n', encoding="utf-8")
    assert check_repo.check(workspace) == []


@pytest.mark.parametrize("part", ["README.md", "src/kv_other/py.typed"])
def test_a_missing_part_is_found(check_repo: ModuleType, workspace: Path, part: str) -> None:
    (workspace / "plugins/kv_other" / part).unlink()
    assert rules(check_repo, workspace) == ["distribution"]


def test_a_test_folder_that_is_a_package_is_found(check_repo: ModuleType, workspace: Path) -> None:
    (workspace / "plugins/kv_other/tests/__init__.py").touch()
    assert rules(check_repo, workspace) == ["distribution"]


@pytest.mark.parametrize("source", ['__version__ = "1.2.3"\n', "x = 1\n"])
def test_a_version_that_is_not_from_metadata_is_found(check_repo: ModuleType, workspace: Path, source: str) -> None:
    (workspace / "core/src/kv_core/__init__.py").write_text(source, encoding="utf-8")
    assert rules(check_repo, workspace) == ["versions"]


def test_the_command_reports_and_exits_with_1(workspace: Path) -> None:
    (workspace / "core/src/kv_core/broken.py").write_text("x = 1\nimport pickle\n", encoding="utf-8")
    ran = subprocess.run([sys.executable, SCRIPT, workspace], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert "core/src/kv_core/broken.py:2: pickle: " in ran.stdout


def test_the_imported_version_is_that_of_the_distribution() -> None:
    import kv_core

    assert kv_core.__version__ == version("kv-core") == version("kv-fake")
