"""Limits of the process that registering memory, sockets and shared memory run into."""

from __future__ import annotations

from collections.abc import Iterator

from kv_core.cli.doctor.facts.limits import Limits
from kv_core.contract.doctor import ok, warning
from kv_core.contract.records import CheckStatus, DoctorFinding

MIB = 1 << 20
LOCKED = 64 * MIB
"""The least that a limit of locked memory must allow; what an engine really registers is thousands of times that."""
FIXED_FILES = 96
"""Open files of a manager without peers, its engine and its process: generous."""
FILES_PER_PEER = 4
FEW_PEERS = 32
LEAST_PEERS = 2
SHARED = 64 * MIB

MEMLOCK = ok("limits.memlock", "Locked memory: {limit}")
MEMLOCK_LOW = warning(
    "limits.memlock-low",
    "No more than {limit} of memory may be locked (RLIMIT_MEMLOCK): RDMA devices refuse to register more, with ENOMEM",
    "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity; docker run --ulimit memlock=-1), or the capability IPC_LOCK",
)
FILES = ok("limits.files", "Open files: {limit}, enough for {peers} peers")
FILES_LOW = warning(
    "limits.files-low",
    "{limit} files may be open (RLIMIT_NOFILE): that is enough for about {peers} peers",
    "ulimit -n 65536 (systemd: LimitNOFILE=; the hard limit here is {hard})",
)
SHM = ok("limits.shm", "Shared memory ({path}): {size}, {free} of it free")
SHM_SMALL = warning(
    "limits.shm-small",
    "Shared memory ({path}) has {size}, {free} of it free: engines that move pages through it fail, or use something slower",
    "Make it larger: docker run --shm-size=1g, or --ipc=host; in Kubernetes an emptyDir with medium Memory at /dev/shm",
)
SHM_GONE = warning(
    "limits.shm-gone", "There is no shared memory at {path}", "Mount a tmpfs there: mount -t tmpfs tmpfs {path}"
)


def limits(found: Limits, *, rdma: bool) -> Iterator[DoctorFinding]:
    """``rdma``: there is a device that locks memory, so that its limit matters."""
    if found.memlock is None or found.may_lock or found.memlock >= LOCKED:
        free = found.may_lock and found.memlock is not None
        note = (
            f"{_size(found.memlock)}, which does not bind this process (CAP_IPC_LOCK)" if free else _size(found.memlock)
        )
        yield MEMLOCK.found(limit=note)
    else:
        kind = MEMLOCK_LOW.at(CheckStatus.PROBLEM) if rdma else MEMLOCK_LOW
        yield kind.found(limit=_size(found.memlock))
    peers = None if found.files is None else max(0, found.files - FIXED_FILES) // FILES_PER_PEER
    if peers is None or peers >= FEW_PEERS:
        yield FILES.found(limit=_count(found.files), peers="any number of" if peers is None else f"about {peers}")
    else:
        kind = FILES_LOW.at(CheckStatus.PROBLEM) if peers < LEAST_PEERS else FILES_LOW
        yield kind.found(limit=_count(found.files), peers=peers, hard=_count(found.files_hard))
    yield _shm(found)


def _shm(found: Limits) -> DoctorFinding:
    if found.shm_size is None or found.shm_free is None:
        return SHM_GONE.found(path=found.shm)
    small = min(found.shm_size, found.shm_free) < SHARED
    kind = SHM_SMALL if small else SHM
    return kind.found(path=found.shm, size=_size(found.shm_size), free=_size(found.shm_free))


def _size(nbytes: int | None) -> str:
    if nbytes is None:
        return "unlimited"
    for unit, name in ((1 << 30, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.4g} {name}"
    return f"{nbytes} bytes"


def _count(number: int | None) -> str:
    return "unlimited" if number is None else str(number)
