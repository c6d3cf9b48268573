"""Defects of the machine and of what is installed: each made for real, all found in one run under their ids."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.tests.cli.doctor.support import by_id
from core.tests.cli.support import COMMAND, LIMIT_S, Ran, environment
from core.tests.registry.support import Site
from kv_core.cli.doctor import limits
from kv_core.cli.doctor.facts.limits import CAP_IPC_LOCK, look_at_limits

FILES = 128
OTHERS = "mooncake,mori,nixl"
"""Backends that may be installed here, and have no part in this."""
PR_CAPBSET_DROP = 24
CHECKS = """
from kv_core import hookimpl
from kv_core.contract.records import CheckStatus, DoctorCheck, DoctorFinding

def broken():
    raise RuntimeError("this check has a mistake")

@hookimpl
def kv_doctor_checks():
    finding = DoctorFinding("watch.disk", CheckStatus.PROBLEM, "The disk is full", "Empty it")
    return [DoctorCheck("watch.disk", "The disk", lambda: [finding]), DoctorCheck("watch.broken", "Broken", broken)]
"""


def install_defects(site: Site) -> None:
    """Plugins that do not load, each in a way of its own, and two builds of one engine over each other."""
    site.backend("raises", distribution="kv-raises", before="raise RuntimeError('the plugin has a mistake')")
    site.backend("newer", distribution="kv-newer", change="INFO['api_version'] = (9, 0)")
    load = "import ctypes\ndef preflight():\n    ctypes.CDLL('libkv-doctor-test.so.3')\nRECORD['preflight'] = preflight"
    site.backend("hidden", distribution="kv-hidden", change=load)
    crash = "import os\ndef preflight():\n    os.kill(os.getpid(), 11)\nRECORD['preflight'] = preflight"
    site.backend("crashes", distribution="kv-crashes", change=crash)
    site.backend(
        "twins", distribution="kv-twins",
        requires=("some-engine; extra == 'cpu'", "some-engine-cuda13; extra == 'cuda13'"),
    )  # fmt: skip
    site.plugin("watch", CHECKS)
    site.plugin("unmarked", "def kv_peer_event(event): ...", distribution="kv-unmarked")
    for name, code in (("some-engine", "aaa"), ("some-engine-cuda13", "bbb")):
        site.distribution(name, "1.5")
        record = f"some_engine/__init__.py,sha256={code},4\nsome_engine/same.py,sha256=ccc,4\n"
        if name.endswith("13"):
            record += "some_engine/lost.so,sha256=ddd,4\n"
        (site.path / f"{name.replace('-', '_')}-1.5.dist-info" / "RECORD").write_text(record)
    (site.path / "some_engine").mkdir()
    for name in ("__init__.py", "same.py"):
        (site.path / "some_engine" / name).write_text("x=1\n")


def lower_limits() -> None:
    """In the child, before the command: no locked memory, few files, and not the right to lock all the same."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0)  # fails where there is none to drop


def may_mount() -> bool:
    """Whether a mount of our own over /dev/shm can be made."""
    trial = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    ran = subprocess.run(["unshare", "--mount", "sh", "-c", trial], capture_output=True)
    return ran.returncode == 0


@pytest.fixture(scope="module")
def sick(tmp_path_factory) -> Iterator[dict[str, Any]]:
    """What the command finds where all of that is so, and a port is taken, and a name is unknown."""
    site = Site(tmp_path_factory.mktemp("site"))
    install_defects(site)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [
            *COMMAND, "doctor", "--json", "--static", "--bootstrap-port", port, "--advertised-host", "no-such-host.invalid",
        ]  # fmt: skip
        if may_mount():
            shell = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$0" "$@"'
            command = ["unshare", "--mount", "sh", "-c", shell, *command]
        ran = subprocess.run(
            command, env=environment(site.path, KV_CORE_DISABLED_PLUGINS=OTHERS), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S,
            preexec_fn=lower_limits,
        )  # fmt: skip
        document = json.loads(ran.stdout)
        assert ran.returncode == document["exit_status"] == 1, Ran(ran.returncode, ran.stdout, ran.stderr)
        yield {**document, "port": port, "command": command}
    site.forget()


@pytest.fixture(scope="module")
def healthy() -> dict[str, Any]:
    """What it finds on this machine as it is, with nothing but the embedded backend asked for."""
    ran = subprocess.run(
        [*COMMAND, "doctor", "--json", "--static", "--backend", "fake"], env=environment(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert ran.returncode == 0, Ran(ran.returncode, ran.stdout, ran.stderr)
    return json.loads(ran.stdout)


DEFECTS = {
    "backends.broken": "RuntimeError: the plugin has a mistake",
    "backends.incompatible": "built for plugin API 9.0",
    "backends.library": "libkv-doctor-test.so.3: cannot open shared object file",
    "backends.crashed": "was killed by SIGSEGV",
    "packages.clash": "some-engine 1.5 and some-engine-cuda13 1.5 are both installed",
    "packages.files-gone": "some_engine/lost.so",
    "plugins.broken": "no @hookimpl marker",
    "limits.memlock-low": "No more than 0 bytes of memory may be locked",
    "limits.files-low": f"{FILES} files may be open",
    "port.taken": "pytest",
    "address.unresolved": "advertised_host 'no-such-host.invalid'",
    "watch.disk": "The disk is full",
    "watch.broken": "RuntimeError: this check has a mistake",
}


@pytest.mark.parametrize("finding", DEFECTS)
def test_each_defect_is_found_under_its_id(finding: str, sick: dict[str, Any], healthy: dict[str, Any]):
    found = by_id(sick)
    assert finding in found, f"{finding} is missing among {sorted(found)}"
    seen = found[finding]
    assert seen["status"] in ("warning", "problem")
    assert len(seen["remedy"].split()) >= 2, "it says what to do"
    words = DEFECTS[finding]
    if finding == "port.taken":
        words = f"(pid {os.getpid()})"
    texts = [each["message"] for each in sick["findings"] if each["id"] == finding]
    assert any(words in text for text in texts), f"{words!r} is not in {texts}"
    if finding != "limits.memlock-low":  # which a healthy machine without RDMA may have
        assert finding not in by_id(healthy)


def test_a_shared_memory_that_is_too_small(sick: dict[str, Any], tmp_path: Path):
    """Made for real where this user may mount; elsewhere the look is turned to a file system without any space."""
    if sick["command"][0] == "unshare":
        seen = by_id(sick)["limits.shm-small"]
        assert "1 MiB" in seen["message"]
    (small,) = [each for each in limits.limits(look_at_limits(Path("/proc")), rdma=False) if "shm" in each.id]
    assert small.id == "limits.shm-small"
    (gone,) = [each for each in limits.limits(look_at_limits(tmp_path / "none"), rdma=False) if "shm" in each.id]
    assert gone.id == "limits.shm-gone"


def test_a_healthy_machine_has_no_problem(healthy: dict[str, Any]):
    assert healthy["schema"] == 1
    assert healthy["summary"]["problem"] == 0
    found = by_id(healthy)
    assert {"backends.loads", "address.good", "limits.files", "host.switch-interval"} <= set(found)
    assert sum(healthy["summary"].values()) == len(healthy["findings"])
    assert sys.version.split()[0] in found["backends.core"]["message"]


def test_with_a_backend_that_works_the_broken_others_are_warnings(sick: dict[str, Any]):
    found = by_id(sick)
    for finding in ("backends.broken", "backends.library", "backends.crashed", "packages.clash"):
        assert found[finding]["status"] == "warning", found[finding]
    assert found["port.taken"]["status"] == "problem"
