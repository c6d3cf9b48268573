"""What is in the wheels."""

from __future__ import annotations

import email
import email.message
import zipfile
from pathlib import Path

import pytest

from tests.packaging.environments import distributions, project


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
    assert len(found.get_all("Requires-Dist", [])) == len(table["dependencies"])


def test_all_distributions_have_one_version(wheels: dict[str, Path]) -> None:
    assert len(wheels) >= 2
    assert len({metadata(wheel)["Version"] for wheel in wheels.values()}) == 1


def test_the_embedded_backend_needs_nothing_but_core(wheels: dict[str, Path]) -> None:
    (requirement,) = metadata(wheels["kv-fake"]).get_all("Requires-Dist", [])
    assert requirement.startswith("kv-core")


def test_a_plugin_announces_itself_in_the_entry_point_group(wheels: dict[str, Path]) -> None:
    files = read_all(wheels["kv-fake"])
    (entry_points,) = [data for name, data in files.items() if name.endswith(".dist-info/entry_points.txt")]
    assert entry_points.decode().split("\n")[:2] == ["[kv_core.backends]", "fake = kv_fake"]


def test_core_brings_the_command_and_no_backend(wheels: dict[str, Path]) -> None:
    files = read_all(wheels["kv-core"])
    (entry_points,) = [data for name, data in files.items() if name.endswith(".dist-info/entry_points.txt")]
    assert "kv-core = kv_core.cli:main" in entry_points.decode()
    assert "kv_core.backends" not in entry_points.decode()
