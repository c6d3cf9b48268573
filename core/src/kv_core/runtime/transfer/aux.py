"""Auxiliary rows over the control channel, for transports that can't write them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kv_core.contract.memory import AUX_POOL
from kv_core.layout import MemoryLayout
from kv_core.runtime.transfer.memory import HostMemory


class AuxDataCodec:
    """Reads one auxiliary row as bytes (prefill) and writes such bytes into a row (decode). Host memory only.

    The row is one ``bytes`` object for each auxiliary buffer, in the pool's order. One thread at a time.
    """

    def __init__(self, layout: MemoryLayout, memory: HostMemory) -> None:
        self._memory = memory
        pool = layout.pool(AUX_POOL)
        self._num_items = 0 if pool is None else pool.num_items
        self._lengths: list[int] = [] if pool is None else pool.item_len.tolist()
        self._first = 0 if pool is None else layout.first_region(AUX_POOL)

    def encode(self, row: int) -> tuple[bytes, ...]:
        """The bytes of a row. Raises ``ValueError`` if there is no such row, or not in host memory."""
        self._check(row)
        return tuple(
            self._memory.view(self._first + k)[row * length : (row + 1) * length].tobytes()
            for k, length in enumerate(self._lengths)
        )

    def decode(self, row: int, rows: Sequence[bytes]) -> None:
        """Write what ``encode`` made into a row. Nothing is written unless everything fits.

        Raises ``ValueError`` for another number of buffers or other lengths than this side's, and as ``encode`` does.
        """
        self._check(row)
        lengths = [len(data) for data in rows]
        if lengths != self._lengths:
            raise ValueError(
                f"an auxiliary row has {len(self._lengths)} buffers of {_brief(self._lengths)} bytes here, and one with "
                f"{len(lengths)} of {_brief(lengths)} bytes arrived"
            )
        views = [self._memory.view(self._first + k) for k in range(len(lengths))]
        for view, data, length in zip(views, rows, lengths, strict=True):
            view[row * length : (row + 1) * length] = np.frombuffer(data, np.uint8)

    def _check(self, row: int) -> None:
        if not 0 <= row < self._num_items:
            raise ValueError(f"auxiliary row {row} does not exist: there are {self._num_items}")


def _brief(lengths: Sequence[int]) -> str:
    return f"{list(lengths[:8])}{'...' if len(lengths) > 8 else ''}"
