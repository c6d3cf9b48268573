"""``kv-core new-backend``: what it writes builds, installs, loads, and says what is left to write."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from importlib.metadata import Distribution, distributions, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from core.tests.cli.support import environment, kv_core
from kv_core import KV_CORE_API
from kv_core.cli.new_backend import Names, Refused, render, write
from kv_core.cli.new_backend.names import bounds
from kv_core.contract.transport import Transport

ROOT = Path(__file__).resolve().parents[3]
NAME = "my-fabric_2"
MODULE = "kv_my_fabric_2"
BUILD_LIMIT_S = 100
WRITTEN = {
    ".github/workflows/conformance.yml",
    ".gitignore",
    "README.md",
    "pyproject.toml",
    f"src/{MODULE}/__init__.py",
    f"src/{MODULE}/conformance.py",
    f"src/{MODULE}/py.typed",
    f"src/{MODULE}/transport.py",
}
SECTIONS = {
    "Memory",
    "Peers",
    "Moving bytes",
    "Knowing when it is over",
    "Failures and quiescence",
    "Waiting and closing",
    "Capabilities",
}
"""The sections of docs/writing-a-backend.md that may be pointed at."""
WORKING = {"wait", "wake", "close"}


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command that has to succeed; its standard output."""
    ran = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=BUILD_LIMIT_S
    )
    assert ran.returncode == 0, f"{command}: exit status {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def install(project: Path, home: Path) -> Path:
    """Build a project (source distribution, and the wheel from that) and unpack the wheel; the folder with its modules."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", home / "dist", project, cwd=home)
    (wheel,) = (home / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home / "site")
    return home / "site"


def answer(site: Path, script: str) -> Any:
    """What a script prints as JSON in a process of its own, which finds an unpacked wheel."""
    return json.loads(run(sys.executable, "-W", "error", "-c", script, cwd=site, env=environment(site)))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as the command writes it."""
    folder = tmp_path_factory.mktemp("written") / "new" / "project"
    ran = kv_core("new-backend", NAME, str(folder))
    assert ran.status == 0, ran
    return folder


@pytest.fixture(scope="module")
def site(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its wheel, unpacked."""
    return install(project, tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def metadata(site: Path) -> Distribution:
    """The metadata in its wheel."""
    (found,) = distributions(path=[str(site)])
    return found


def test_tells_each_file_and_what_to_type_next(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    ran = kv_core("new-backend", NAME, str(folder))
    assert ran.status == 0, ran
    lines = ran.out.splitlines()
    told = {line.removeprefix("wrote ") for line in lines if line.startswith("wrote ")}
    assert told == {str(folder / name) for name in WRITTEN}
    assert files_in(folder) == WRITTEN
    assert [line.strip() for line in lines if line.startswith("    ")] == [
        f"cd '{folder}'",
        "pip install -e '.[test]'",
        f"python -m kv_conformance {NAME} --report report/",
    ]


def test_is_among_the_commands() -> None:
    assert "new-backend" in kv_core("--help").out


@pytest.mark.parametrize(
    ("name", "distribution", "module", "prefix"),
    [
        ("ucx", "kv-ucx", "kv_ucx", "Ucx"),
        ("a", "kv-a", "kv_a", "A"),
        ("my-fabric_2", "kv-my-fabric_2", "kv_my_fabric_2", "MyFabric2"),
    ],
)
def test_what_everything_is_called(name: str, distribution: str, module: str, prefix: str) -> None:
    names = Names(name)
    assert (names.distribution, names.module, names.prefix) == (distribution, module, prefix)


@pytest.mark.parametrize(
    "name",
    ["", "Ucx", "2d", "-ucx", "_ucx", "ucx-", "ucx_", "a--b", "a-_b", "a.b", "a b", "ücx", "ucx\n", "../ucx", "class"],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(Refused, match="lower-case letters and digits, begins with a letter") as caught:
        Names(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["core", "conformance"])
def test_names_of_our_own_distributions_are_refused(name: str) -> None:
    with pytest.raises(Refused, match=f"kv-{name} is a distribution of kv-core's own"):
        Names(name)


def test_a_refused_name_is_a_wrong_use_and_writes_nothing(tmp_path: Path) -> None:
    ran = kv_core("new-backend", "Ucx", str(tmp_path / "project"))
    assert (ran.status, ran.out) == (2, ""), ran
    assert "'Ucx' can't be the name: a backend's name has lower-case letters" in ran.err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    for name in ("mine", "more", "other", "yours"):
        (tmp_path / name).write_text(name)
    ran = kv_core("new-backend", NAME, str(tmp_path))
    assert (ran.status, ran.out) == (2, ""), ran
    assert f"{tmp_path} is not empty (it has mine, more, other, ...): name an empty folder" in ran.err
    assert files_in(tmp_path) == {"mine", "more", "other", "yours"}


@pytest.mark.parametrize("below", ["", "project"])
def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / below
    ran = kv_core("new-backend", NAME, str(folder))
    assert (ran.status, ran.out) == (2, ""), ran
    assert f"{folder} can't be the project's folder" in ran.err
    assert (tmp_path / "file").read_text() == "mine"


def test_what_the_system_does_not_let_it_write_is_told(tmp_path: Path) -> None:
    ran = kv_core("new-backend", "a" * 300, str(tmp_path))
    assert ran.status == 2, ran
    assert "__init__.py can't be written: File name too long" in ran.err


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ("0.1.0", ">=0.1,<0.2"),
        ("0.9", ">=0.9,<0.10"),
        ("1.12.3", ">=1.12,<1.13"),
        ("0.2.0rc1", ">=0.2.0rc1,<0.3"),
        ("0.2.0.dev3+gabc", ">=0.2.0.dev3,<0.3"),
    ],
)
def test_it_asks_for_the_minor_version_of_the_running_core(running: str, expected: str) -> None:
    assert bounds(running) == expected


def test_a_version_that_can_not_be_read_is_refused() -> None:
    with pytest.raises(Refused, match="'unknown', must begin with two numbers"):
        bounds("unknown")


def test_nothing_of_the_templates_is_left_over() -> None:
    for target, text in render(Names(NAME)).items():
        assert "$" not in text.replace("${{ matrix.python }}", ""), target
        assert text.endswith("\n") or target.endswith("py.typed"), target


def test_the_transport_is_short() -> None:
    assert render(Names(NAME))[f"src/{MODULE}/transport.py"].count("\n") < 150


def test_the_wheel_has_every_module_and_asks_for_what_belongs_together(site: Path, metadata: Distribution) -> None:
    modules = {name.removeprefix("src/") for name in WRITTEN if name.startswith("src/")}
    assert {name for name in files_in(site) if ".dist-info/" not in name} == modules
    wanted = bounds(version("kv-core"))
    asked = {text.replace(" ", "") for text in metadata.requires or ()}
    ours = {
        f"kv-core{','.join(reversed(wanted.split(',')))}",
        *(r for r in requires("kv-core") or () if "msgspec" in r),
    }
    suite = f"kv-conformance{','.join(reversed(wanted.split(',')))};extra=='test'"
    assert asked == {*ours, suite}
    assert metadata.metadata["Name"] == f"kv-{NAME}"


def test_it_announces_itself_to_core_and_to_the_suite(metadata: Distribution) -> None:
    assert {(entry.group, entry.name, entry.value) for entry in metadata.entry_points} == {
        ("kv_core.backends", NAME, MODULE),
        ("kv_core.conformance", NAME, f"{MODULE}.conformance:MyFabric2Harness"),
    }


def test_it_is_listed_and_loads_without_the_suite(site: Path) -> None:
    script = f"""
import json, sys
import kv_core
(listed,) = [one for one in kv_core.list_backends() if one.name == {NAME!r}]
early = {MODULE!r} in sys.modules
info = kv_core.load_backend({NAME!r}).info
unwanted = [name for name in ("kv_conformance", "pytest", "zmq", "aiohttp") if name in sys.modules]
file = sys.modules[{MODULE!r}].__file__
print(json.dumps([listed.distributions, early, info.name, info.distribution, info.version, info.api_version,
                  sorted(info.capabilities), unwanted, file]))
"""
    listed, early, *info, capabilities, unwanted, file = answer(site, script)
    assert (listed, early) == ([f"kv-{NAME}"], False)
    assert info == [NAME, f"kv-{NAME}", "0.1.0", list(KV_CORE_API)]
    assert (capabilities, unwanted) == (["write"], [])
    assert Path(file) == site / MODULE / "__init__.py"


def test_the_api_that_it_was_built_for_is_a_number_and_not_whatever_is_installed() -> None:
    assert f"api_version={KV_CORE_API!r}," in render(Names(NAME))[f"src/{MODULE}/__init__.py"]


def test_a_manager_can_not_be_made_before_register_memory_is_written(site: Path) -> None:
    script = f"""
import json
import numpy as np
import kv_core
from kv_core.contract.memory import KV_POOL
memory = np.zeros(64, np.uint8)
args = kv_core.KVArgs(kv=kv_core.Pool(KV_POOL, (kv_core.Buffer(memory.ctypes.data, 16, 4),)))
try:
    kv_core.load_backend({NAME!r}).create_manager(kv_core.Role.PREFILL, args)
except kv_core.RegistrationError as error:
    print(json.dumps([str(error), error.region, error.quiescent]))
"""
    message, region, quiescent = answer(site, script)
    assert message.startswith(f"backend {NAME}: register_memory() is not written yet. It has to make all regions")
    assert message.endswith("see docs/writing-a-backend.md, 'Memory'")
    assert (region, quiescent) == (0, True)


OPENED = f"""
import inspect, json, sys, threading
import kv_core
from kv_core.contract.transport import Transport, TransportContext
from {MODULE}.transport import MyFabric2Transport

def opened(direction=kv_core.Direction.WRITE, **options):
    config = kv_core.TransferConfig(options=options)
    return MyFabric2Transport(TransportContext(kv_core.Role.PREFILL, "me", config, direction))

def raised(function, *arguments):
    try:
        function(*arguments)
    except kv_core.KVCoreError as error:
        return [type(error).__name__, str(error), getattr(error, "quiescent", None)]
"""


def test_every_method_to_be_written_says_so_and_where_to_read_on(site: Path) -> None:
    script = f"""{OPENED}
transport = opened()
names = sorted(Transport.__abstractmethods__ - {WORKING!r})
numbers = [len(inspect.signature(getattr(transport, name)).parameters) for name in names]
answers = [raised(getattr(transport, name), *[None] * number) for name, number in zip(names, numbers)]
print(json.dumps(dict(zip(names, answers))))
"""
    answers = answer(site, script)
    assert set(answers) == Transport.__abstractmethods__ - WORKING
    for name, (kind, message, quiescent) in answers.items():
        assert kind == ("RegistrationError" if name == "register_memory" else "TransportError")
        assert quiescent is True
        assert f"{name}() is not written yet. It has to " in message
        sections = set(re.findall("'([^']+)'", message.partition("docs/writing-a-backend.md, ")[2]))
        assert sections, message
        assert sections <= SECTIONS, message


def test_the_constructor_refuses_what_it_does_not_know(site: Path) -> None:
    script = f"""{OPENED}
opened(device="eth0").close()
print(json.dumps([raised(lambda: opened(devcie="eth0")), raised(opened, kv_core.Direction.READ)]))
"""
    (wrong, told, _), (pull, why, _) = answer(site, script)
    assert (wrong, pull) == ("InvalidConfig", "NotSupported")
    assert f"backend {NAME} has no option 'devcie'; it has device" in told
    assert why == "reading from a peer (pull) is not supported by this backend (capability 'read' is not declared)"


def test_waiting_ends_when_somebody_wakes_it_and_closing_twice_is_fine(site: Path) -> None:
    script = f"""{OPENED}
transport = opened()
transport.wake()
transport.wait(3600.0)  # heard though it rang before
transport.wait(0.01)  # rings no more: ends by itself
waiter = threading.Thread(target=transport.wait, args=(3600.0,))
waiter.start()
transport.wake()
waiter.join(60)
transport.close()
transport.close()
transport.wake()
print(json.dumps(waiter.is_alive()))
"""
    assert answer(site, script) is False


@pytest.mark.skipif(find_spec("ruff") is None, reason="ruff is not installed here")
@pytest.mark.parametrize("name", ["a", NAME, "a-name-of-twenty-seven-char"])
def test_ruff_finds_nothing(tmp_path: Path, name: str) -> None:
    list(write(Names(name), tmp_path))
    ruff = (sys.executable, "-m", "ruff")
    house = ("--config", ROOT / "pyproject.toml", "--config", 'src=["src"]')
    run(*ruff, "check", "--no-cache", ".", cwd=tmp_path)
    run(*ruff, "check", "--no-cache", *house, ".", cwd=tmp_path)
    run(*ruff, "format", "--no-cache", "--check", ".", cwd=tmp_path)


def test_the_workflow_runs_the_suite_and_keeps_its_report(project: Path) -> None:
    text = (project / ".github/workflows/conformance.yml").read_text()
    assert 'python: ["3.10", "3.13"]' in text
    assert "python-version: ${{ matrix.python }}" in text
    assert f"python -m kv_conformance {NAME} --report report\n" in text


def test_the_templates_are_in_cores_wheel_and_are_what_is_written(tmp_path: Path) -> None:
    site = install(ROOT / "core", tmp_path)
    template = site / "kv_core/cli/new_backend/templates/README.md.tmpl"
    template.write_text(template.read_text() + "\nThe $name that was changed.\n")
    ran = kv_core("new-backend", NAME, str(tmp_path / "project"), site=site)
    assert ran.status == 0, ran
    assert files_in(tmp_path / "project") == WRITTEN
    assert (tmp_path / "project/README.md").read_text().endswith(f"\nThe {NAME} that was changed.\n")
