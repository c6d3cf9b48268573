"""``kv-core`` itself, and ``kv-core backends``."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

from core.tests.cli.support import kv_core
from core.tests.registry.support import Site

EMBEDDED = "fake"
OTHERS = ",".join(entry.name for entry in entry_points(group="kv_core.backends") if entry.name != EMBEDDED)
"""Real engines that happen to be installed: their tests are elsewhere, and loading them takes its time."""


@pytest.fixture(autouse=True)
def no_other_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KV_CORE_DISABLED_PLUGINS", OTHERS)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An empty folder to be put on the path of a command."""
    return Site(tmp_path)


def test_version() -> None:
    ran = kv_core("--version")
    assert (ran.status, ran.out) == (0, f"kv-core {version('kv-core')}\n"), ran


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help(arguments: tuple[str, ...]) -> None:
    ran = kv_core(*arguments)
    assert ran.status == 0, ran
    assert "demo" in ran.out
    assert "backends" in ran.out


def test_an_unknown_command_is_a_wrong_use() -> None:
    assert kv_core("dmeo").status == 2


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["--version"]])
def test_help_imports_no_socket_library(arguments: list[str]) -> None:
    script = f"""
import sys
from kv_core.cli import main
sys.argv = ["kv-core", *{arguments!r}]
try:
    main()
finally:
    sys.stderr.write(str([name for name in ("aiohttp", "requests", "zmq") if name in sys.modules]))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "[]"), ran.stdout


def test_backends_lists_what_works() -> None:
    ran = kv_core("backends", "--json")
    assert ran.status == 0, ran
    (row,) = [row for row in ran.document["backends"] if row["name"] == "fake"]
    assert (row["status"], row["distributions"]) == ("ok", ["kv-fake"])
    assert "embedded" in row["capabilities"]


def test_backends_tells_what_is_broken_and_why_and_hides_nothing(site: Site) -> None:
    message = "libverbose.so.1: cannot open shared object file: No such file or directory"
    site.backend("broken", distribution="kv-broken", version="3.1", before=f"raise ImportError({message!r})")
    ran = kv_core("backends", "--json", site=site.path)
    assert ran.status == 0, ran
    rows = {row["name"]: row for row in ran.document["backends"]}
    assert rows["fake"]["status"] == "ok"
    broken = rows["broken"]
    assert (broken["status"], broken["version"], broken["error_type"]) == ("broken", "3.1", "ImportError")
    assert broken["error"] == message
    assert "libverbose.so.1" in broken["hint"]


def test_the_table_of_backends_has_the_error_and_the_hint_in_full(site: Site) -> None:
    message = "no [bold]driver[/] " + "was found " * 30
    site.backend("broken", distribution="kv-broken", before=f"raise ImportError({message!r})")
    ran = kv_core("backends", site=site.path, KV_CORE_DISABLED_PLUGINS=f"{EMBEDDED},{OTHERS}")
    assert ran.status == 0, ran
    assert "kv-broken" in ran.out
    assert f"broken: ImportError: {message.strip()}" in ran.out
    assert "disabled" in ran.out


def test_backends_that_end_the_process_do_not(site: Site) -> None:
    site.backend("exiting", distribution="kv-exiting", before="import sys; sys.exit(3)")
    ran = kv_core("backends", "--json", site=site.path)
    assert ran.status == 0, ran
    statuses = {row["name"]: row["status"] for row in ran.document["backends"] if row["status"] != "disabled"}
    assert statuses == {"exiting": "broken", EMBEDDED: "ok"}


def test_the_demo_chooses_the_embedded_backend_among_several(site: Site) -> None:
    site.backend("aaa", distribution="kv-aaa", before="raise ImportError('no engine')")
    ran = kv_core("demo", "--requests", "2", "--pages", "2", "--json", site=site.path)
    assert ran.status == 0, ran
    assert ran.document["backend"] == "fake"


def test_without_an_embedded_backend_the_demo_names_the_choice(site: Site) -> None:
    hardware = "INFO['capabilities'] = frozenset({Capability.WRITE})"
    site.backend("aaa", distribution="kv-aaa", change=hardware)
    site.backend("bbb", distribution="kv-bbb", change=hardware)
    ran = kv_core("demo", "--json", site=site.path, KV_CORE_DISABLED_PLUGINS=f"{EMBEDDED},{OTHERS}")
    assert ran.status == 2, ran
    assert "aaa, bbb" in ran.err
    assert "--backend NAME" in ran.document["error"]


def test_a_backend_that_is_not_there_is_named() -> None:
    ran = kv_core("demo", "--backend", "fakee")
    assert ran.status == 2, ran
    assert "Did you mean 'fake'?" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [("--requests", "0"), ("--page-bytes", "33"), ("--kill", "router"), ("--option", "faults"), ("--digest", "some")],
)
def test_arguments_that_can_not_work_are_refused_by_name(arguments: tuple[str, str]) -> None:
    ran = kv_core("demo", *arguments)
    assert ran.status == 2, ran
    assert arguments[0] in ran.err
