"""Ranks of unequal topologies: each one's memory as its engine describes it, what is in it, and what has to be in it at last."""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import product

import numpy as np

from kv_conformance.nodes.memory import POISON, Image
from kv_conformance.nodes.rank_shape import BufferShape, RankShape
from kv_conformance.nodes.wire_server import Placed
from kv_conformance.suite.cache import CONV, STEPS, WINDOW, Cache, Items, Model, Side, held, stage
from kv_core import Topology
from kv_core.contract.items import ItemLayout
from kv_core.contract.memory import AUX_POOL, KV_POOL
from kv_core.layout import Pages

SPARE = 3
"""Pages of a pool that nobody names."""
SLOTS = 3
"""Items of convolution state, and auxiliary rows."""


class Rank:
    """One rank of a side, with random items for the prompt's pages that it has: those from ``begin`` (a page of its own) on.

    ``shape``: its memory. ``pages``, ``window``: item numbers of the KV pages and of the window's, in the prompt's order;
    ``slot``: its item of convolution state, and its auxiliary row.
    """

    def __init__(self, cache: Cache, side: Side, tp_rank: int, pp_rank: int, begin: int = 0, *, gap: int = 512) -> None:
        model, random = cache.model, cache.random
        self.cache, self.side, self.tp_rank, self.begin = cache, side, tp_rank, begin
        self.layers = stage(model.layers, pp_rank, side.pp)
        self.topology = Topology(tp_rank, side.tp, pp_rank, side.pp)
        self.positions: Items = np.arange(begin, -(-model.tokens // side.page), dtype=np.int64)
        self.pages: Items = random.permutation(len(self.positions) + SPARE)[: len(self.positions)]
        self.window_begin = max(begin, len(self.positions) // 2)
        kept = len(self.positions) + begin - self.window_begin
        self.window: Items = random.permutation(kept + SPARE)[:kept]
        self.slot = int(random.integers(SLOTS))
        self.shape = RankShape(
            gap=gap, shift=int(random.integers(8)), buffers=tuple(self._buffers()), topology=self.topology,
            page_size=side.page, order=side.order,
        )  # fmt: skip

    def _buffers(self) -> Iterator[BufferShape]:
        model, side = self.cache.model, self.side
        for layer in self.layers:
            yield from self._paged(KV_POOL, len(self.pages), layer, model.head_bytes + layer % 2, model.parts)
        if model.channels:
            parts = [("x", model.channels, 2), *([("b", model.groups, 3)] if model.groups else [])]
            item = ItemLayout.state(parts, tp_size=side.tp, rows=STEPS)
            yield from (BufferShape(CONV, SLOTS, item.nbytes, layer, "", item) for layer in self.layers)
        for layer in self.layers:
            if layer in self.cache.window:
                yield from self._paged(WINDOW, len(self.window), layer, 3, ("w",))
        if model.row:
            yield from (BufferShape(AUX_POOL, SLOTS, model.row) for _ in range(2))

    def _paged(self, pool: str, pages: int, layer: int, width: int, parts: tuple[str, ...]) -> Iterator[BufferShape]:
        model, side = self.cache.model, self.side
        blocks = parts if side.fused else ("",)
        item = ItemLayout.page(side.page, model.units, width, tp_size=side.tp, order=side.order, parts=blocks)
        for part in ("",) if side.fused else parts:
            yield BufferShape(pool, pages + SPARE, item.nbytes, layer, part, item)

    # -- what is in the memory -------------------------------------------------------------------------------------

    def fill(self, image: Image) -> None:
        """Put prefill's bytes into its pages, and poison everywhere else."""
        image.whole[:] = POISON
        self._put(image, tokens=None, layers=self.layers, units=None, states=True, row=True)

    def expect(
        self, image: Image, *, layers: Container[int] | None = None, units: Container[int] | None = None, kv: bool = True,
        states: bool = True, row: bool = True,
    ) -> None:  # fmt: skip
        """Put in what has to be in decode's memory when these layers and units (None: all) of the KV pages have been moved,
        and states and row, if so wanted. Tokens before ``begin``, and behind the prompt, are not moved.
        """
        begin, model = self.begin * self.side.page, self.cache.model
        chosen = self.layers if layers is None else [layer for layer in self.layers if layer in layers]
        tokens = range(begin, model.tokens)
        self._put(image, tokens=tokens, layers=chosen if kv else (), units=units, states=states, row=row)

    def _put(
        self, image: Image, *, tokens: range | None, layers: Container[int], units: Container[int] | None, states: bool,
        row: bool,
    ) -> None:  # fmt: skip
        cache, side = self.cache, self.side
        kv, window, conv = (iter(image.pools.get(name, ())) for name in (KV_POOL, WINDOW, CONV))
        for layer in self.layers:
            found = cache.pages(cache.kv[layer], side, self.tp_rank, self.positions, tokens=tokens, units=units)
            for pages, array in zip(found, kv, strict=False):  # kv last: it goes on with the next layer's
                if layer in layers:
                    array[self.pages] = np.where(pages == POISON, array[self.pages], pages)
            if cache.model.channels and states:
                next(conv)[self.slot] = cache.state(side, self.tp_rank, layer)
            if layer in cache.window and states:
                positions = self.positions[len(self.positions) - len(self.window) :]
                moved = cache.pages(cache.window[layer], side, self.tp_rank, positions, tokens=tokens)
                for pages, array in zip(moved, window, strict=False):
                    array[self.window] = pages
        if row and cache.model.row:
            for array, data in zip(image.pools[AUX_POOL], cache.row, strict=True):
                array[self.slot] = data

    # -- what is told of it ----------------------------------------------------------------------------------------

    def placed(self) -> dict[str, Pages]:
        """What this rank names of each pool, as it stands in the prompt."""
        items = {KV_POOL: (self.pages, self.begin), WINDOW: (self.window, self.window_begin)}
        items |= {name: (np.array([self.slot]), 0) for name in (CONV, AUX_POOL)}
        return {name: Pages(found.astype(np.uint64), first) for name, (found, first) in items.items()}

    def states(self) -> dict[str, list[int]] | None:
        """The state items that this rank names; None if it has no such pools."""
        model = self.cache.model
        found = {CONV: [self.slot]} if model.channels else {}
        if any(layer in self.cache.window for layer in self.layers):
            found[WINDOW] = self.window.tolist()
        return found or None

    @property
    def row(self) -> int | None:
        """Its auxiliary row."""
        return self.slot if self.cache.model.row else None


def ranks(cache: Cache, side: Side, begin: int = 0, *, gap: int = 512) -> list[Rank]:
    """All ranks of a side."""
    return [Rank(cache, side, tp, pp, begin, gap=gap) for tp, pp in product(range(side.tp), range(side.pp))]


def pair_up(source: Rank, destination: Rank, *, row: bool = True) -> Placed:
    """What both sides name, pool by pool; ``row``: the auxiliary rows, too."""
    theirs = destination.placed()
    return {name: (mine, theirs[name]) for name, mine in source.placed().items() if row or name != AUX_POOL}


def written(image: Image) -> int:
    """How many bytes of an image that was poisoned before are something else."""
    return int((image.whole != POISON).sum())


def share(model: Model, side: Side, rank: int) -> range:
    """The heads, or the one latent vector, of a tensor-parallel rank."""
    return held(model.units, rank, side.tp)
