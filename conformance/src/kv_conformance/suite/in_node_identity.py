"""What KV-ID lets other processes do: load the backend, read its record, construct its transport, import it alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kv_core import BackendInfo, BackendRecord, Role, TransferConfig, load_backend
from kv_core.contract.transport import TransportContext
from kv_core.registry import Source
from kv_core.registry.source import BACKENDS, scan

IMPORT_ALONE = """
import contextlib, importlib, os, sys, sysconfig
for name in (
    "kv_core", "kv_core.contract.transport", "kv_core.runtime", "kv_core.registry", "numpy", "msgspec", "json", "bz2", "ctypes",
    "curses", "dbm", "decimal", "hashlib", "lzma", "mmap", "multiprocessing.synchronize", "sqlite3", "ssl", "uuid",
    "xml.parsers.expat", "zlib",
):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
import json
from importlib.metadata import EntryPoint
from pathlib import Path


def mapped():
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return {path for path in paths if path.startswith("/") and (".so." in path or path.endswith(".so"))}


def sockets():
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    return found


def threads():
    return {path.name: (path / "comm").read_text().strip() for path in Path("/proc/self/task").iterdir()}


# Python's own extensions, and further ones of packages that kv-core has imported already.
homes = [path for name, module in list(sys.modules.items()) if "." not in name for path in getattr(module, "__path__", [])]
homes.append(sysconfig.get_config_var("DESTSHARED"))
homes = tuple(f"{Path(home).resolve()}/" for home in homes if home)
before = {"libraries": mapped(), "sockets": sockets(), "threads": threads(), "modules": set(sys.modules)}
plugin = EntryPoint(sys.argv[1], sys.argv[2], sys.argv[3]).load()
hook = getattr(plugin, "kv_backend", None)
if hook is not None:
    hook()
seen = {
    "libraries": sorted(path for path in mapped() - before["libraries"] if not path.startswith(homes)),
    "sockets": sockets() - before["sockets"],
    "threads": [name for number, name in threads().items() if number not in before["threads"]],
    "modules": sorted(set(sys.modules) - before["modules"]),
}
Path(sys.argv[4]).write_text(json.dumps(seen), encoding="utf-8")
os._exit(0)  # what a thread or a library does at the interpreter's end is not the question here
"""


@dataclass(frozen=True)
class Alone:
    """What importing a plugin and calling its ``kv_backend`` did to a process that had core and nothing else."""

    libraries: tuple[str, ...]
    sockets: int
    threads: tuple[str, ...]
    modules: frozenset[str]
    stdout: str
    stderr: str


def import_alone(name: str, value: str, group: str, limit_s: float) -> Alone:
    """Import what this entry point names in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="kv-conformance-") as folder:
        told = Path(folder) / "seen.json"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        done = subprocess.run(  # noqa: S603 - this very Python
            [sys.executable, "-c", IMPORT_ALONE, name, value, group, str(told)],
            capture_output=True, text=True, errors="replace", timeout=limit_s, check=False, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert told.exists(), (
            f"importing {value} in a fresh process failed (exit status {done.returncode}):\n{done.stdout}{done.stderr}"
        )
        seen = json.loads(told.read_text(encoding="utf-8"))
    return Alone(
        tuple(seen["libraries"]), seen["sockets"], tuple(seen["threads"]), frozenset(seen["modules"]),
        done.stdout, done.stderr,
    )  # fmt: skip


def source_of(backend: str) -> Source:
    """The plugin's entry point; the first one, if several contend for the name."""
    sources = scan(BACKENDS).get(backend, ())
    assert sources, f"no distribution offers a backend {backend!r}"
    return sources[0]


def record_of(backend: str) -> BackendRecord:
    """What kv_backend() returns, before any check: one mistake shall not make every check fail with the same words."""
    source = source_of(backend)
    hook = getattr(source.load(), "kv_backend", None)
    assert callable(hook), f"{source.value} has no function kv_backend"
    answer: object = hook()
    assert isinstance(answer, BackendRecord), f"kv_backend() returned {answer!r}, expected a BackendRecord"
    info: object = answer.info
    assert isinstance(info, BackendInfo), f"record.info is {info!r}, expected a BackendInfo"
    return answer


class Reader:
    """In a process of its own: the backend as it is read, loaded and constructed there."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def info(self) -> BackendInfo:
        """What the backend says of itself, read here."""
        return record_of(self.backend).info

    def same(self, info: BackendInfo) -> bool:
        """Whether a description from another process is equal to the one that is read here."""
        return info == record_of(self.backend).info

    def load(self) -> tuple[BackendInfo, bool]:
        """Load it twice: its description, and whether both were the same backend."""
        backend = load_backend(self.backend)
        return backend.info, load_backend(self.backend) is backend

    def construct(self, options: dict[str, Any]) -> tuple[str, str]:
        """Construct the transport with these options: name and text of what it raised; empty if it did not."""
        kind = record_of(self.backend).transport
        try:
            transport = kind(TransportContext(Role.PREFILL, "conformance", TransferConfig(options=options)))
        except Exception as error:  # noqa: BLE001 - which one it is, is the question
            return type(error).__name__, str(error)
        transport.close()
        return "", ""


def known_options(settings: Iterable[Any]) -> list[str]:
    """Names of options that the harness uses."""
    return sorted({name for setting in settings if setting is not None for name in setting.options})


def canonical(distribution: str) -> str:
    """A distribution's name as package indexes compare it."""
    return "-".join(part for part in distribution.lower().replace("_", "-").replace(".", "-").split("-") if part)
