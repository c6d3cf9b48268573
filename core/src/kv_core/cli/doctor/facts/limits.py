"""Limits of this process, and the shared memory of this machine."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path

CAP_IPC_LOCK = 14
CAP_SYS_PTRACE = 19
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Limits:
    """In bytes, and in files; None: unlimited. ``may_lock``: the memlock limit does not hold for this process (CAP_IPC_LOCK).

    ``shm_size`` and ``shm_free``: None if ``shm`` is not there.
    """

    memlock: int | None
    may_lock: bool
    files: int | None
    files_hard: int | None
    shm: Path
    shm_size: int | None
    shm_free: int | None


def look_at_limits(shm: Path) -> Limits:
    """Look."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    size = free = None
    try:
        found = os.statvfs(shm)
    except OSError:
        found = None
    if found is not None:
        size, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    return Limits(
        memlock=_bound(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]),
        may_lock=has_capability(CAP_IPC_LOCK),
        files=_bound(soft),
        files_hard=_bound(hard),
        shm=shm,
        shm_size=size,
        shm_free=free,
    )


def has_capability(number: int) -> bool:
    """Whether this process has a Linux capability in effect."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    mask = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return bool(int(mask, 16) >> number & 1)


def _bound(value: int) -> int | None:
    return None if value == resource.RLIM_INFINITY else value
