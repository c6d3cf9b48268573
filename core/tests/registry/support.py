"""Fake installed distributions (a ``*.dist-info`` folder and modules in a folder on the path) and a backend to vary."""

from __future__ import annotations

import importlib
import itertools
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from kv_core import Buffer, KVArgs, KVPoll, Liveness, PeerEvent, Pool, Role, RoomEvent, RoomEventKind
from kv_core.contract.memory import KV_POOL
from kv_core.registry.source import BACKENDS, PLUGINS

MANAGER = object()
"""What the stand-in for the runtime makes."""
_NUMBERS = itertools.count(1)
ARGS = KVArgs(kv=Pool(KV_POOL, (Buffer(4096, 16, 4),)))

TRANSPORT = """
from kv_core.contract.enums import ThreadingModel
from kv_core.contract.transport import Prepared, Transfer, Transport


class GoodTransport(Transport):
    threading = ThreadingModel.OWNER

    def __init__(self, context):
        raise AssertionError("a check constructed the transport")

    def register_memory(self, regions): ...
    def deregister_memory(self, regions): ...
    def local_descriptor(self): return b""
    def add_peer(self, peer, descriptor): ...
    def remove_peer(self, peer): ...
    def prepare(self, peer, plan): return Prepared(peer, plan)
    def submit(self, prepared, batch): return Transfer(prepared.peer, batch.nbytes)
    def progress(self, transfers): return []
    def release(self, transfer): ...
    def describe(self, peer): return "none"
    def wait(self, timeout_s): ...
    def wake(self): ...
    def close(self): ...
"""

INFO = """
from kv_core import BackendInfo, BackendRecord, Capability, hookimpl

INFO = dict(
    name="NAME", distribution="DISTRIBUTION", version="VERSION", api_version=(1, 0),
    capabilities=frozenset({Capability.WRITE, Capability.EMBEDDED}), description="for tests",
)
RECORD = dict(transport=GoodTransport)
"""

HOOK = """

@hookimpl
def kv_backend():
    return BackendRecord(info=BackendInfo(**INFO), **RECORD)
"""


class Site:
    """A folder on ``sys.path`` that plays site-packages. Module names are new each time; all are forgotten at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: set[str] = set()

    def module(self, text: str, name: str | None = None) -> str:
        """Write a module; its name."""
        name = name or f"kv_plugin_for_test_{next(_NUMBERS)}"
        (self.path / f"{name}.py").write_text(textwrap.dedent(text))
        self.modules.add(name)
        importlib.invalidate_caches()
        return name

    def distribution(
        self,
        name: str,
        version: str,
        *,
        backends: Mapping[str, str] | None = None,
        plugins: Mapping[str, str] | None = None,
        requires: tuple[str, ...] = (),
        raw_entry_points: str | None = None,
    ) -> None:
        """Install metadata: a dist-info folder with these entry points."""
        folder = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        groups = ((BACKENDS, backends or {}), (PLUGINS, plugins or {}))
        text = "".join(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in own.items()) for group, own in groups if own)
        (folder / "entry_points.txt").write_text(text if raw_entry_points is None else raw_entry_points)
        importlib.invalidate_caches()

    def backend(
        self,
        name: str,
        *,
        distribution: str = "kv-good",
        version: str = "1.2",
        before: str = "",
        change: str = "",
        after: str = "",
        requires: tuple[str, ...] = (),
        attribute: str = "",
    ) -> str:
        """Install a good backend, with code before everything, before its hook, or after it. The module's name."""
        module = self.module(
            backend_text(name, distribution=distribution, version=version, before=before, change=change, after=after)
        )
        self.distribution(distribution, version, backends={name: module + attribute}, requires=requires)
        return module

    def plugin(
        self, name: str, text: str, *, distribution: str = "kv-watch", version: str = "0.3", attribute: str = ""
    ) -> str:
        """Install a plugin of observers. The module's name."""
        module = self.module(text)
        self.distribution(distribution, version, plugins={name: module + attribute})
        return module

    def forget(self) -> None:
        """Take its modules out of ``sys.modules``."""
        for name in self.modules:
            sys.modules.pop(name, None)


def backend_text(
    name: str,
    *,
    distribution: str = "kv-good",
    version: str = "1.2",
    before: str = "",
    change: str = "",
    after: str = "",
) -> str:
    """A module that is a good backend of this name, but for the changes."""
    info = INFO.replace("NAME", name).replace("DISTRIBUTION", distribution).replace("VERSION", version)
    return "\n".join(textwrap.dedent(part) for part in (before, TRANSPORT, info, change, HOOK, after))


def room_event(time_s: float = 0.0) -> RoomEvent:
    return RoomEvent(RoomEventKind.OPENED, "good", Role.PREFILL, 17, 1, KVPoll.Bootstrapping, time_s)


def peer_event(time_s: float = 0.0) -> PeerEvent:
    return PeerEvent("good", Role.PREFILL, "decode-0", Liveness.OK, "joined", time_s)
