"""Registered memory: which ranges peers may write, by region number, and the check of every segment against it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kv_core import Region, RegistrationError
from kv_fake.iovec import is_mapped

U64 = npt.NDArray[np.uint64]


class RegisteredMemory:
    """The regions of one transport. Changed by the owner thread, read by the NIC's threads: the arrays are replaced,
    never changed, under a lock that each write into memory holds shared (see ``Nic``).
    """

    def __init__(self) -> None:
        self._regions: dict[int, Region] = {}
        self._lock = threading.Lock()
        self._table = (np.zeros(0, np.uint64), np.zeros(0, np.uint64))

    def register(self, regions: Sequence[Region]) -> None:
        """Add regions, all or none. Raises ``RegistrationError``."""
        for position, region in enumerate(regions):
            if not is_mapped(region.address, region.nbytes):
                raise RegistrationError(
                    f"region {region.index} ({region.nbytes} bytes at {region.address:#x}, pool {region.pool!r}) is not "
                    f"mapped in this process (ENOMEM): pass the address of memory that is allocated and stays allocated",
                    region=position, errno=errno.ENOMEM,
                )  # fmt: skip
        with self._lock:
            self._regions |= {region.index: region for region in regions}
            self._rebuild()

    def deregister(self, regions: Sequence[Region]) -> None:
        """Take regions away; unknown ones are ignored."""
        with self._lock:
            for region in regions:
                if self._regions.get(region.index) == region:
                    del self._regions[region.index]
            self._rebuild()

    def _rebuild(self) -> None:
        size = max(self._regions, default=-1) + 1
        address, nbytes = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
        for index, region in self._regions.items():
            address[index], nbytes[index] = region.address, region.nbytes
        self._table = (address, nbytes)

    def locate(self, region: U64, offset: U64, length: U64) -> tuple[U64, int]:
        """(addresses, -1), or (whatever, number of the first segment that is not wholly inside a registered region)."""
        address, nbytes = self._table
        known = region < np.uint64(len(address))
        index = np.where(known, region, np.uint64(0)).astype(np.intp)
        if not len(address):
            return offset, 0
        limit = np.where(known, nbytes[index], np.uint64(0))
        # Unsigned: ``offset + length`` could wrap, ``limit - offset`` can't once offset <= limit.
        good = (offset <= limit) & (length <= limit - np.minimum(offset, limit)) & (length > 0)
        if not good.all():
            return offset, int(np.argmin(good))
        return address[index] + offset, -1
