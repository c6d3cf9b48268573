"""Registered memory: which ranges peers may write, by region number, and the check of every segment against it."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kv_core import Region, RegistrationError

U64 = npt.NDArray[np.uint64]


class RegisteredMemory:
    """The regions of one transport. Changed by the owner thread, read by the NIC's threads: the arrays are replaced,
    never changed. A frame that began to land before a change is the NIC's business (``Nic.evict``).
    """

    def __init__(self) -> None:
        self._regions: Counter[Region] = Counter()  # the same one may be registered more than once
        self._table = (np.zeros(0, np.uint64), np.zeros(0, np.uint64))

    def register(self, regions: Sequence[Region]) -> None:
        """Add regions, all or none. Raises ``RegistrationError``."""
        taken = {region.index: region for region in self._regions}
        for position, region in enumerate(regions):
            if taken.setdefault(region.index, region) != region:
                raise RegistrationError(
                    f"region number {region.index} is registered already, for other memory (EEXIST): deregister that first",
                    region=position, errno=errno.EEXIST,
                )  # fmt: skip
        self._regions.update(regions)
        self._rebuild()

    def deregister(self, regions: Sequence[Region]) -> list[int]:
        """Take regions away; unknown ones are ignored. Returns the numbers of those that are gone now."""
        known = [region for region in regions if region in self._regions]
        self._regions = +(self._regions - Counter(known))
        self._rebuild()
        return [region.index for region in known if region not in self._regions]

    def __contains__(self, region: Region) -> bool:
        return region in self._regions

    def _rebuild(self) -> None:
        size = max((region.index for region in self._regions), default=-1) + 1
        address, nbytes = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
        for region in self._regions:
            address[region.index], nbytes[region.index] = region.address, region.nbytes
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
