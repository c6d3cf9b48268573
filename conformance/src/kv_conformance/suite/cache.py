"""The cache of a whole model for one prompt, in arrays, and what of it each rank holds: the oracle of unequal topologies.

Nothing here asks core's planner: what a rank holds is cut out of the arrays by indexing. Byte values are random, never 0 and
never poison, so that a byte which moved is told from one that did not.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kv_conformance.nodes.memory import POISON, U8

Items = npt.NDArray[np.int64]
STEPS = 3
"""Rows of an item of convolution state."""
CONV, WINDOW = "conv", "window"
"""The state pools: convolution state, cut by channels and groups, and pages of a sliding window."""


@dataclass(frozen=True)
class Side:
    """One side's sizes of parallelism, and its pages: ``page`` tokens, ordered NHD or HND; ``fused``: K and V in one buffer."""

    tp: int = 1
    pp: int = 1
    page: int = 2
    order: str = "NHD"
    fused: bool = False


@dataclass(frozen=True)
class Model:
    """A model and a prompt. ``head_bytes``: of even layers; odd ones have one more. ``latent``: one vector for all heads, which
    every rank holds. ``channels``, ``groups``: of convolution state in each layer (0: none). ``window``: whether odd layers
    have pages of a sliding window. ``row``: bytes of an auxiliary row in each of two buffers (0: none).
    """

    layers: int = 2
    heads: int = 4
    head_bytes: int = 5
    tokens: int = 16
    latent: bool = False
    channels: int = 0
    groups: int = 0
    window: bool = False
    row: int = 0

    @property
    def parts(self) -> tuple[str, ...]:
        """What a layer has of each token."""
        return ("latent",) if self.latent else ("k", "v")

    @property
    def units(self) -> int:
        """What tensor parallelism shares out."""
        return 1 if self.latent else self.heads


def held(total: int, rank: int, size: int) -> range:
    """The units that a rank holds: from ``rank * total // size`` on its share, or one that others hold, too."""
    first = rank * total // size
    return range(first, first + max(total // size, 1))


def stage(layers: int, rank: int, size: int) -> range:
    """The layers of a pipeline stage."""
    return range(rank * layers // size, (rank + 1) * layers // size)


@dataclass
class Cache:
    """The bytes. ``kv``: for each layer an array of shape (part, token, unit, byte); ``window``: the same for odd layers, of
    one part; ``x``, ``b``: convolution state, (layer, step, unit, byte); ``row``: (buffer, byte). ``span``: tokens of the
    largest page, up to a multiple of which there are bytes: those behind the prompt must not be moved.
    """

    model: Model
    random: np.random.Generator
    span: int
    kv: list[U8] = field(init=False)
    window: dict[int, U8] = field(init=False)
    x: U8 = field(init=False)
    b: U8 = field(init=False)
    row: U8 = field(init=False)

    def __post_init__(self) -> None:
        model = self.model
        tokens = -(-model.tokens // self.span) * self.span

        def fresh(*shape: int) -> U8:
            return self.random.integers(1, POISON, shape, np.uint8)

        self.kv = [
            fresh(len(model.parts), tokens, model.units, model.head_bytes + layer % 2) for layer in range(model.layers)
        ]
        odd = range(1, model.layers, 2) if model.window else ()
        self.window = {layer: fresh(1, tokens, model.units, 3) for layer in odd}
        self.x = fresh(model.layers, STEPS, model.channels, 2)
        self.b = fresh(model.layers, STEPS, model.groups, 3)
        self.row = fresh(2, model.row)

    def pages(
        self, whole: U8, side: Side, rank: int, positions: Items, *, tokens: range | None = None,
        units: Container[int] | None = None,
    ) -> list[U8]:  # fmt: skip
        """What a tensor-parallel rank has in its pages at these positions of the prompt, for each buffer: (page, byte).

        tokens, units: all other bytes are poison.
        """
        mine = held(whole.shape[2], rank, side.tp)
        moved = np.zeros(whole.shape[1:3], np.bool_)
        moved[slice(None) if tokens is None else slice(tokens.start, tokens.stop)] = [
            units is None or unit in units for unit in range(whole.shape[2])
        ]
        parts = []
        for part in np.where(moved[None, :, :, None], whole, np.uint8(POISON))[:, :, mine.start : mine.stop]:
            pages = part.reshape(-1, side.page, *part.shape[1:])[positions]
            if side.order == "HND":
                pages = pages.transpose(0, 2, 1, 3)
            parts.append(np.ascontiguousarray(pages).reshape(len(positions), -1))
        return [np.concatenate(parts, axis=1)] if side.fused else parts

    def state(self, side: Side, rank: int, layer: int) -> U8:
        """The bytes of an item of convolution state: step by step the rank's channels, then its groups."""
        shares = [(array[layer], held(array.shape[2], rank, side.tp)) for array in (self.x, self.b) if array.shape[2]]
        rows = [array[:, mine.start : mine.stop].reshape(STEPS, -1) for array, mine in shares]
        return np.concatenate(rows, axis=1).ravel()
