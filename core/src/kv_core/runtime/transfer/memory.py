"""Registered host memory as NumPy arrays over the very bytes: nothing is copied."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kv_core.contract.enums import MemoryKind
from kv_core.contract.memory import Region

Bytes = npt.NDArray[np.uint8]


class HostMemory:
    """Views of regions. The memory must stay mapped for as long as this object is used: the engine that registered it
    promises that until its manager is closed.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        self._regions = tuple(regions)
        self._views: dict[int, Bytes] = {}

    def view(self, region: int) -> Bytes:
        """The bytes of a region, uint8, writable. Raises ``ValueError`` for memory that the CPU can't address."""
        found = self._views.get(region)
        if found is None:
            found = self._views[region] = self._map(self._regions[region])
        return found

    @staticmethod
    def _map(region: Region) -> Bytes:
        if region.kind is not MemoryKind.HOST:
            raise ValueError(
                f"pool {region.pool!r} is in {region.kind.value} memory: digests, and auxiliary rows over the control "
                "channel, need host memory. Set TransferConfig.digest to off, or keep that pool in host memory"
            )
        raw = (ctypes.c_uint8 * region.nbytes).from_address(region.address)
        return np.frombuffer(memoryview(raw).cast("B"), np.uint8)
