"""The doctor's own memory: a layout with buffers in it, and bytes that both sides know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from kv_core.cli.doctor.jobs import Layout, LayoutBuffer
from kv_core.contract.failures import InvalidConfig
from kv_core.contract.memory import AUX_POOL, KV_POOL, Buffer, KVArgs, Pool, Topology

MODEL = "kv-core doctor"
PAGES = 128
LAYERS = 4
ITEM_BYTES = 64 * 1024
BULK_BYTES = PAGES * 2 * LAYERS * ITEM_BYTES
"""64 MiB: what a transfer moves."""
POISON = 0xA5
SEED = 17
"""What the pages hold follows from this and from the buffer's number: both sides know it."""

U8 = npt.NDArray[np.uint8]


def own_layout() -> Layout:
    """What two doctors have in common: no model's layout."""
    buffers = tuple(LayoutBuffer(ITEM_BYTES, number // 2, "kv"[number % 2]) for number in range(2 * LAYERS))
    return Layout(kv=buffers, model=MODEL)


class Memory:
    """Buffers of a layout with so many items each; the KV pages are ``kv``, one array (items, item_len) for each buffer."""

    def __init__(self, layout: Layout, pages: int) -> None:
        self.layout = layout
        self.kv = [np.full((pages, buffer.item_len), POISON, np.uint8) for buffer in layout.kv]
        self._rest: list[U8] = []  # kept alive: the transport has their addresses

    def args(self) -> KVArgs:
        """As core is told of it. Raises ``InvalidConfig`` for a layout that can't be."""
        layout = self.layout
        return KVArgs(
            kv=Pool(KV_POOL, tuple(_buffer(array, told) for array, told in zip(self.kv, layout.kv, strict=True))),
            aux=Pool(AUX_POOL, self._more(layout.aux)) if layout.aux else None,
            states=tuple(Pool(name, self._more(buffers)) for name, buffers in layout.states.items()),
            page_size=layout.page_size,
            dtype=layout.dtype,
            kv_layout=layout.kv_layout,
            model=layout.model,
            revision=layout.revision,
            num_kv_heads=layout.num_kv_heads,
            head_dim=layout.head_dim,
            topology=topology(layout.topology),
            extra=layout.extra,
        )

    def _more(self, buffers: Iterable[LayoutBuffer]) -> tuple[Buffer, ...]:
        made = []
        for told in buffers:
            self._rest.append(np.zeros((1, told.item_len), np.uint8))
            made.append(_buffer(self._rest[-1], told))
        return tuple(made)

    def fill(self) -> None:
        """Put in what the other side expects."""
        for number, array in enumerate(self.kv):
            array[:] = content(number, array.shape)

    def poison(self) -> None:
        """Put in what nobody expects."""
        for array in self.kv:
            array[:] = POISON

    def wrong_bytes(self, order: npt.NDArray[np.uint64]) -> int:
        """Bytes that are not what they must be, where page ``order[i]`` holds the other side's page i."""
        wrong = 0
        for number, array in enumerate(self.kv):
            expected = content(number, array.shape)
            wrong += int(np.count_nonzero(array[order.astype(np.intp)] != expected[: order.size]))
        return wrong


def content(number: int, shape: tuple[int, ...]) -> U8:
    """What buffer ``number`` of the sending side holds."""
    generator = np.random.default_rng([SEED, number])
    return np.frombuffer(generator.bytes(int(np.prod(shape))), np.uint8).reshape(shape)


def topology(told: Mapping[str, int]) -> Topology:
    """A rank's place, from names such as tp_rank and tp_size. Raises ``InvalidConfig`` for a name that there is not."""
    try:
        return Topology(**told)
    except TypeError as error:
        raise InvalidConfig(f"topology: {error}; it has tp_rank, tp_size, and the same for pp, cp and dp") from None


def _buffer(array: U8, told: LayoutBuffer) -> Buffer:
    return Buffer(array.ctypes.data, told.item_len, array.shape[0], told.layer, told.part)
