"""Which ways there are to move pages over a backend, and how each is made."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness.memory import Memory
from benchmarks.harness.way_core import CoreWay
from benchmarks.harness.way_mooncake import MooncakeWay
from benchmarks.harness.way_nixl import NixlWay
from benchmarks.harness.way_socket import SocketWay
from benchmarks.harness.way_sync import SyncWay
from benchmarks.harness.way_transport import TransportWay
from benchmarks.harness.work import Way

RAW: dict[str, type[NixlWay | MooncakeWay]] = {"nixl": NixlWay, "mooncake": MooncakeWay}
"""Backends whose engine can be driven without kv-core."""


def yardstick(backend: str) -> str:
    """What kv-core over this backend is compared with: the engine itself, or a plain socket where it has none."""
    return "raw" if backend in RAW else "socket"


def beside(backend: str) -> tuple[str, ...]:
    """What else is shown in some cells."""
    return {"nixl": ("socket",), "mooncake": ("spin", "socket")}.get(backend, ())


def make_way(kind: str, memory: Memory, backend: str, *, source: bool) -> Way:
    """One side's end of a way."""
    makers: dict[str, Callable[[], Way]] = {
        "core": lambda: CoreWay(memory, backend, source=source),
        "transport": lambda: TransportWay(memory, backend, source=source),
        "sync": lambda: SyncWay(memory, backend, source=source),
        "socket": lambda: SocketWay(memory, source=source),
        "raw": lambda: RAW[backend](memory, source=source),
        "spin": lambda: MooncakeWay(memory, source=source, spin=True),
    }
    return makers[kind]()
