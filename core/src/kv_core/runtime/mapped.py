"""Is memory that an engine names really there? Most fabrics believe any address, and a wrong one kills a process later."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

import numpy as np

from kv_core.contract.enums import MemoryKind
from kv_core.contract.failures import RegistrationError
from kv_core.contract.memory import Region

_libc = ctypes.CDLL(None, use_errno=True)
_mincore = getattr(_libc, "mincore", None)
if _mincore is not None:
    _mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_AT_ONCE = 1 << 34
"""Bytes asked about in one call: one byte of answer for each page of them."""


def check_mapped(regions: Sequence[Region]) -> None:
    """Raise ``RegistrationError``, with its position, for the first host region that is not mapped in this process.

    Memory of a device is the engine's to check. Any thread; nothing is changed.
    """
    for position, region in enumerate(regions):
        if region.kind is MemoryKind.HOST and not _is_mapped(region.address, region.nbytes):
            raise RegistrationError(
                f"region {region.index} ({region.nbytes} bytes at {region.address:#x}, pool {region.pool!r}) is not mapped "
                "in this process (ENOMEM): pass the address of memory that is allocated and stays allocated",
                region=position, errno=errno.ENOMEM,
            )  # fmt: skip


def _is_mapped(address: int, nbytes: int) -> bool:
    page = os.sysconf("SC_PAGE_SIZE")
    start = address - address % page
    stop = -(-(address + nbytes) // page) * page
    if stop > 2**63:  # no process has memory there
        return False
    if _mincore is None:
        return True
    answer = np.empty(min(stop - start, _AT_ONCE) // page, np.uint8)
    return all(
        _mincore(first, min(_AT_ONCE, stop - first), answer.ctypes.data) == 0 for first in range(start, stop, _AT_ONCE)
    )
