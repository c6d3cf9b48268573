"""What is in the wheels."""

from __future__ import annotations

import email
import email.message
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.packaging.environments import ROOT, distributions, project

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def read_all(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("distribution", distributions())
def test_a_wheel_has_every_module_of_its_source_and_nothing_else(wheels: dict[str, Path], distribution: str) -> None:
    module = distribution.replace("-", "_")
    source = distributions()[distribution] / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / module).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files = {name for name in read_all(wheels[distribution]) if ".dist-info/" not in name}
    assert f"{module}/py.typed" in files
    assert files == expected


@pytest.mark.parametrize("distribution", distributions())
def test_the_metadata_is_what_the_project_says(wheels: dict[str, Path], distribution: str) -> None:
    table = project(distributions()[distribution])
    found = metadata(wheels[distribution])
    assert found["Name"] == distribution
    assert found["Version"] == table["version"]
    assert found["Requires-Python"] == ">=3.10"
    requirements = [Requirement(text) for text in found.get_all("Requires-Dist", [])]
    assert len([one for one in requirements if "extra" not in str(one.marker)]) == len(table["dependencies"])
    assert set(found.get_all("Provides-Extra", [])) == set(table.get("optional-dependencies", {}))


def test_all_distributions_have_one_version(wheels: dict[str, Path]) -> None:
    assert len(wheels) >= 2
    assert len({metadata(wheel)["Version"] for wheel in wheels.values()}) == 1


def test_the_embedded_backend_needs_nothing_but_core(wheels: dict[str, Path]) -> None:
    stated = [Requirement(text) for text in metadata(wheels["kv-fake"]).get_all("Requires-Dist", [])]
    assert [one.name for one in stated if "extra" not in str(one.marker)] == ["kv-core"]
    assert {one.name for one in stated} == {"kv-core", "kv-conformance"}


def test_the_tested_engines_are_ones_that_the_plugins_extras_allow(wheels: dict[str, Path]) -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    pins = [Requirement(text) for name, group in groups.items() if name.startswith("engine-") for text in group]
    assert len(pins) >= 4
    versions = {pin.name: next(iter(pin.specifier)).version for pin in pins}
    stated = [Requirement(text) for wheel in wheels.values() for text in metadata(wheel).get_all("Requires-Dist", [])]
    stated = [one for one in stated if one.name in versions]
    assert {"nixl", "mooncake-transfer-engine-non-cuda"} <= {one.name for one in stated}
    for one in stated:
        assert one.specifier.contains(versions[one.name]), f"{one} does not allow the tested {versions[one.name]}"


@pytest.mark.parametrize("name", ["fake", "mooncake", "mori", "nixl"])
def test_a_plugin_announces_itself_in_the_entry_point_group(wheels: dict[str, Path], name: str) -> None:
    files = read_all(wheels[f"kv-{name}"])
    (entry_points,) = [data for path, data in files.items() if path.endswith(".dist-info/entry_points.txt")]
    assert f"[kv_core.backends]\n{name} = kv_{name}" in entry_points.decode()


def test_core_brings_the_command_and_no_backend(wheels: dict[str, Path]) -> None:
    files = read_all(wheels["kv-core"])
    (entry_points,) = [data for name, data in files.items() if name.endswith(".dist-info/entry_points.txt")]
    assert "kv-core = kv_core.cli:main" in entry_points.decode()
    assert "kv_core.backends" not in entry_points.decode()
