"""Indices from engines and peers: checked before anything is addressed with them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kv_core.contract.transport import U64


def check_indices(items: npt.ArrayLike, num_items: int, what: str = "item indices") -> U64:
    """The indices as a uint64 array, each in 0..num_items-1.

    ``items``: one dimension, any integer dtype; empty is fine. ``what`` begins the sentence of the error. Raises
    ``ValueError`` that names the first offending position, its value and the bound, or the dtype or shape.
    """
    array = np.asarray(items)
    if array.ndim != 1:
        raise ValueError(f"{what}: expected an array of one dimension, got shape {array.shape}")
    if array.size == 0:
        return np.zeros(0, np.uint64)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{what}: expected an array of integers (int32, int64, uint64), got dtype {array.dtype}")
    if int(array.max()) >= num_items or int(array.min()) < 0:
        position, value = _first_outside(array, num_items)
        raise ValueError(f"{what}: index {value} at position {position} is outside 0..{num_items - 1}")
    return array.astype(np.uint64, copy=False)


def _first_outside(array: npt.NDArray[np.integer], num_items: int) -> tuple[int, int]:
    negative = array < 0
    # As uint64 a negative index is larger than any bound that the comparison could miss; it is found by its sign.
    position = int((negative | (array.astype(np.uint64) >= np.uint64(min(num_items, 2**64 - 1)))).argmax())
    return position, int(array[position])
