"""Which fabric UCX uses to a peer, as far as that can be known from outside: NIXL does not tell."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kv_core import MemoryKind, Region
from kv_nixl.engine import rdma_devices
from kv_nixl.options import SLOW_IN_THREADS, NixlOptions


def describe_place() -> dict[str, object]:
    """Where this process is: the host's boot and its pid; empty where there is no /proc."""
    try:
        return {"host": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(), "pid": os.getpid()}
    except OSError:
        return {}


RDMA = frozenset({
    "ib", "rc", "rc_v", "rc_verbs", "rc_x", "rc_mlx5", "ud", "ud_v", "ud_verbs", "ud_x", "ud_mlx5", "dc", "dc_x", "dc_mlx5",
})  # fmt: skip
"""UCX's names of transports over InfiniBand and RoCE."""
INSIDE = frozenset({"self", "cuda_copy", "gdr_copy", "rocm_copy"})
"""Those that stay inside of one process: they stage, and carry nothing to another one."""


class _Span(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("length", ctypes.c_size_t))


def name_fabric(
    options: NixlOptions, mine: Mapping[str, object], theirs: Mapping[str, object], regions: Sequence[Region]
) -> str:
    """Say "ucx tcp" or "ucx rdma" where UCX may use nothing else; "ucx cma" where its rules choose copies between processes:
    same host, this process may write the peer's memory (tried), no RDMA device that might be preferred; else only the backend.
    """
    certain = possible_fabrics(options)
    if len(certain) == 1:
        return certain[0]
    confined = options.transports()
    host = next((region for region in regions if region.kind is MemoryKind.HOST), None)
    same = bool(mine) and mine.get("host") == theirs.get("host")
    copies = not confined or ("cma" in confined and confined <= SLOW_IN_THREADS | {"cma"})
    if same and copies and host is not None and not rdma_devices() and _may_copy(theirs.get("pid"), host.address):
        return "ucx cma"
    return "ucx"


def possible_fabrics(options: NixlOptions) -> tuple[str, ...]:
    """What ``name_fabric`` may say of any peer. UCX_TLS decides it where it leaves UCX one fabric only."""
    if options.backend != "UCX":
        return (options.backend.lower(),)
    confined = options.transports()
    between = confined - INSIDE
    if "tcp" in between and between <= SLOW_IN_THREADS:
        return ("ucx tcp",)
    if between and between <= RDMA:
        return ("ucx rdma",)  # without a device of that kind UCX does not start at all
    copies = not confined or ("cma" in confined and confined <= SLOW_IN_THREADS | {"cma"})
    return ("ucx cma", "ucx") if copies and not rdma_devices() else ("ucx",)


def _may_copy(pid: object, address: int) -> bool:
    """Whether this process may reach the memory of that one: reads one byte of it, as the right to write is the same."""
    if not isinstance(pid, int) or not Path(f"/proc/{pid}").exists():
        return False
    byte = ctypes.c_uint8()
    here, there = _Span(ctypes.addressof(byte), 1), _Span(address, 1)
    call = ctypes.CDLL(None).process_vm_readv
    call.argtypes = (ctypes.c_int, *(ctypes.c_void_p, ctypes.c_ulong) * 2, ctypes.c_ulong)
    call.restype = ctypes.c_ssize_t
    return bool(call(pid, ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0) == 1)
