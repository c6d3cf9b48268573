"""What is said where the engine is missing, clashes with itself or can't be loaded; its silence, and the end of a program.

Each in a process of its own: an extension module is loaded once for all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kv_core import Capability
from kv_mooncake import engine, kv_backend
from kv_mooncake.engine import installed_wheels
from plugins.kv_mooncake.tests.support import ROOT

LOAD = """
import kv_core
try:
    kv_core.load_backend("mooncake")
except kv_core.BackendLoadError as error:
    print(error)
    kv_core.load_backend("fake")  # every other backend still loads
else:
    print("loaded")
"""
BLOCKED = """
import importlib.abc, importlib.metadata, sys
real = importlib.metadata.version
def version(name):
    if name.startswith("mooncake-transfer-engine"):
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mooncake":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
"""
USE = """
import numpy as np
from kv_core import KVArgs, Pool, Role, TransferConfig
from kv_core.contract.memory import regions_of
from kv_core.contract.transport import TransportContext
from kv_mooncake import MooncakeTransport
transport = MooncakeTransport(TransportContext(Role.DECODE, "me", TransferConfig(options={"protocol": "tcp"})))
memory = np.zeros(4096, np.uint8)
transport.register_memory(regions_of(KVArgs(Pool.uniform("kv", [memory.__array_interface__["data"][0]], 64, 64))))
print(transport.local_descriptor().decode())
"""


def run(program: str, *prefix: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", program]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100, cwd=ROOT, env={**os.environ, **environment}
    )


def said(program: str, **environment: str) -> str:
    done = run(program, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wheel(folder: Path, name: str, module: str | None = None) -> str:
    """A folder for PYTHONPATH with a distribution's metadata, and the engine's module if its text is given."""
    info = folder / f"{name.replace('-', '_')}-0.3.99.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3.99\n", encoding="utf-8")
    if module is not None:
        (folder / "mooncake").mkdir()
        (folder / "mooncake" / "__init__.py").write_text("", encoding="utf-8")
        (folder / "mooncake" / "engine.py").write_text(module, encoding="utf-8")
    return str(folder)


def test_it_loads_here():
    assert said(LOAD) == "loaded\n"


def test_the_plugin_describes_itself_without_the_engine():
    text = said(BLOCKED + "import kv_mooncake; print(kv_mooncake.kv_backend().info.name, 'mooncake' in sys.modules)")
    assert text == "mooncake False\n"


def test_no_wheel():
    text = said(BLOCKED + LOAD)
    assert "no Mooncake engine is installed" in text
    assert "kv-mooncake[cpu]" in text


def test_two_clashing_wheels(tmp_path):
    mine = [each.name for each in installed_wheels()]
    text = said(LOAD, PYTHONPATH=wheel(tmp_path, "mooncake-transfer-engine-cuda13"))
    assert "2 wheels of the Mooncake engine" in text
    assert "mooncake-transfer-engine-cuda13 0.3.99" in text
    assert "pip uninstall -y" in text
    assert all(name in text for name in mine)


def test_a_wheel_whose_files_have_gone(tmp_path):
    program = (BLOCKED + LOAD).replace(
        'name.startswith("mooncake-transfer-engine")', 'name == "mooncake-transfer-engine-non-cuda"'
    )
    text = said(program, PYTHONPATH=wheel(tmp_path, "mooncake-transfer-engine"))
    assert "pip install --force-reinstall --no-deps mooncake-transfer-engine" in text


def test_the_cuda_flavour_without_a_driver(tmp_path):
    error = "libcuda.so.1: cannot open shared object file: No such file or directory"
    folder = wheel(tmp_path, "mooncake-transfer-engine", f"raise ImportError({error!r})")
    block = BLOCKED.partition("class Finder")[0].replace(
        'name.startswith("mooncake-transfer-engine")', 'name == "mooncake-transfer-engine-non-cuda"'
    )
    text = said(block + LOAD, PYTHONPATH=folder)
    assert error in text
    assert "built for CUDA 12" in text
    assert "kv-mooncake[cpu]" in text


def test_cuda_memory_is_declared_with_a_cuda_wheel_where_a_device_may_be(monkeypatch, tmp_path):
    device = tmp_path / "nvidiactl"
    monkeypatch.setattr(engine, "CUDA", (tmp_path / "none", device))
    declared = []
    for name in engine.EXTRAS:
        monkeypatch.setattr(engine, "installed_wheels", lambda name=name: [engine.Wheel(name, "0.3.99")])
        for there in (False, True):
            device.unlink(missing_ok=True)
            if there:
                device.touch()
            declared.append((name, there, Capability.CUDA in kv_backend().info.capabilities))
    assert [(name, there) for name, there, said in declared if said] == [
        (name, True) for name in engine.EXTRAS if name in engine.CUDA_WHEELS
    ]


def test_a_log_folder_that_would_end_the_process():
    assert "Unset MC_LOG_DIR" in said(LOAD, MC_LOG_DIR="/tmp")


def library(name: str) -> Path | None:
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"):
        if (Path(folder) / name).exists():
            return (Path(folder) / name).resolve()
    return None


@pytest.mark.parametrize(("name", "package"), [("libibverbs.so.1", "libibverbs1"), ("libnuma.so.1", "libnuma1")])
def test_a_system_library_that_is_missing(name, package, tmp_path):
    path = library(name)
    if path is None:
        pytest.skip(f"{name} is not where it is looked for")
    # Moved away on an overlay that this one process sees.
    links = [each for each in path.parent.iterdir() if each.name.startswith(name.partition(".so")[0] + ".so")]
    script = " && ".join([*(f"mv {each} {each}.away" for each in links), 'exec "$@"'])
    overlay = (
        f"mount -t tmpfs tmpfs {tmp_path} && mkdir {tmp_path}/up {tmp_path}/work && "
        f"mount -t overlay overlay -o lowerdir={path.parent},upperdir={tmp_path}/up,workdir={tmp_path}/work {path.parent} && "
    )
    prefix = ("unshare", "-m", "sh", "-c", overlay + script, "sh")
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace with an overlay can be made here")
    done = run(LOAD, *prefix)
    assert f"{name}: cannot open shared object file" in done.stdout, done.stderr
    assert package in done.stdout


def test_the_engine_is_silent_and_the_program_ends_though_nothing_was_closed():
    done = run(USE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("kv-mooncake/1 tcp ")


def test_close_ends_the_engines_threads_and_ports():
    program = USE + (
        "from pathlib import Path\n"
        "port = int(transport.local_descriptor().split()[2])\n"
        "before = len(list(Path('/proc/self/task').iterdir()))\n"
        "transport.close(); transport.close(); transport.wake()\n"
        "import socket\n"
        "print(before > 3, socket.socket().connect_ex(('127.0.0.1', port)) != 0, len(list(Path('/proc/self/task').iterdir())) < before)\n"
    )
    done = run(program)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "True True True"


def test_ipv6():
    program = USE.replace("TransferConfig(", "TransferConfig(advertised_host='::1', ") + (
        "from kv_core.contract.transport import PeerKey\n"
        "key = PeerKey('me', 1)\n"
        "transport.add_peer(key, transport.local_descriptor())\n"
        "print(transport.probe(key))\n"
    )
    done = run(program, MC_USE_IPV6="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].endswith(" ::1")
    assert done.stdout.splitlines()[1] == "True"
    assert "set it before Python starts" in run(program).stderr
