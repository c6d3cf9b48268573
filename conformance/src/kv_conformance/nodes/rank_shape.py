"""The memory of a rank whose buffers differ from each other and say what their items are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from kv_conformance.nodes.memory import Place, Shape
from kv_core import Buffer, Pool, Topology
from kv_core.contract.items import ItemLayout
from kv_core.contract.memory import AUX_POOL, KV_POOL, NO_LAYER


class BufferShape(NamedTuple):
    """One buffer: ``items`` items of ``item_len`` bytes of this pool. ``layer``, ``part``, ``item``: see ``Buffer``."""

    pool: str
    items: int
    item_len: int
    layer: int = NO_LAYER
    part: str = ""
    item: ItemLayout | None = None


@dataclass(frozen=True)
class RankShape(Shape):
    """Such memory: ``buffers`` in canonical order. ``kv`` and the like, which other shapes are made of, mean nothing here."""

    buffers: tuple[BufferShape, ...] = ()
    topology: Topology = field(default_factory=Topology)
    page_size: int = 1
    order: str = "NHD"

    def places(self) -> dict[str, list[Place]]:
        """The buffers of each pool, in canonical order."""
        at = self.gap + self.shift
        found: dict[str, list[Place]] = {}
        for buffer in self.buffers:
            place = Place(at, buffer.items, buffer.item_len)
            found.setdefault(buffer.pool, []).append(place)
            at = place.end + self.gap
        return found

    def args(self, address: int) -> dict[str, object]:
        """``KVArgs`` of such memory at this address, as keyword arguments."""
        by_pool: dict[str, list[Buffer]] = {}
        places = {name: iter(places) for name, places in self.places().items()}
        for buffer in self.buffers:
            at, items, size = next(places[buffer.pool])
            made = Buffer(address + at, size, items, buffer.layer, buffer.part, buffer.item)
            by_pool.setdefault(buffer.pool, []).append(made)
        pools = {name: Pool(name, tuple(buffers)) for name, buffers in by_pool.items()}
        states = tuple(pool for name, pool in pools.items() if name not in (KV_POOL, AUX_POOL))
        return {
            "kv": pools[KV_POOL], "aux": pools.get(AUX_POOL), "states": states, "model": "conformance",
            "topology": self.topology, "page_size": self.page_size, "kv_layout": self.order,
        }  # fmt: skip
