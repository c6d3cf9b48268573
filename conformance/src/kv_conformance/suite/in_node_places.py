"""What the checks of memory and of peers do inside of a node."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from kv_conformance.nodes.face_server import FaceServer
from kv_core import Buffer, KVCoreError, Pool, TransferConfig, load_backend
from kv_core.contract.memory import KV_POOL

SETTLE_S = 5.0
"""How long threads and files of a manager that was refused may take to go."""
UNMAPPED = 1 << 46
"""Nothing is mapped there in a process of Linux that did not ask for it."""


@dataclass(frozen=True)
class Attempt:
    """What create_manager() raised, and what was there afterwards that was not there before."""

    error: KVCoreError | None
    threads: list[str]
    files: list[str]


def attempt_manager(server: FaceServer, options: Mapping[str, object], unmapped: bool) -> Attempt:
    """Make another manager in this process, over three buffers, of which the second one is not mapped if so wanted. One that
    is made is closed.
    """
    base = server.memory.address
    middle = UNMAPPED if unmapped else base + 8192
    kv = Pool(KV_POOL, tuple(Buffer(address, 512, 8) for address in (base, middle, base + 16384)))
    config = TransferConfig(options=options, close_timeout_s=2.0)
    threads, files = _threads(), _files()
    error: KVCoreError | None = None
    try:
        args = server.memory.args(kv=kv)
        load_backend(server.order.backend).create_manager(server.order.role, args, config).close()
    except KVCoreError as raised:
        error = raised.with_traceback(None)
    deadline = monotonic() + SETTLE_S
    while monotonic() < deadline and (_threads() - threads or _more(files)):
        sleep(0.01)
    return Attempt(error, sorted(_names(_threads() - threads)), _more(files))


def count_resources(_server: object) -> tuple[int, int]:
    """Threads and open files of the process."""
    return len(_threads()), len(_files())


def _threads() -> set[int]:
    """All of the process's threads, native ones too."""
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def _names(threads: set[int]) -> list[str]:
    python = {thread.native_id: thread.name for thread in threading.enumerate()}
    return [python.get(number, f"native thread {number}") for number in threads]


def _files() -> dict[str, str]:
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[link.name] = str(link.readlink())
        except OSError:  # the descriptor by which the folder is read
            continue
    return found


def _more(before: Mapping[str, str]) -> list[str]:
    """Open files that were not there before; their numbers may be others', so it is counted by what they are."""
    now = _files()
    surplus = len(now) - len(before)
    return (
        sorted(f"{number} -> {what}" for number, what in now.items() if before.get(number) != what)
        if surplus > 0
        else []
    )
