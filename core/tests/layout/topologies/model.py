"""The oracle: one number for each byte of the model's cache, and what of it each rank must hold, by NumPy indexing."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

POISON = np.uint32(0)
STATE_ROWS = 3


@dataclass(frozen=True)
class Side:
    """One side's parallel sizes and the shape of its pages. ``fused``: K and V in one buffer."""

    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int = 1
    page: int = 2
    order: str = "NHD"
    fused: bool = False

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return (self.tp, self.pp, self.cp, self.dp)


@dataclass(frozen=True)
class Case:
    """A pair of sides and a model. ``stages``: each side's layers, stage by stage; ``tokens`` of the prompt are moved, a
    multiple of the smaller page; ``prefix`` pages decode has already.
    """

    source: Side = Side()
    destination: Side = Side()
    heads: int = 4
    mla: bool = False
    stages: tuple[tuple[range, ...], tuple[range, ...]] = ((range(1),), (range(1),))
    tokens: int = 4
    prefix: int = 0
    seed: int = 0
    state: bool = True

    @property
    def layers(self) -> int:
        return self.stages[0][-1].stop

    @property
    def parts(self) -> tuple[str, ...]:
        return ("latent",) if self.mla else ("k", "v")


def holders(unit: int, total: int, size: int) -> range:
    """The ranks that hold a unit."""
    if size <= total:
        owner = unit // (total // size)
        return range(owner, owner + 1)
    each = size // total
    return range(unit * each, (unit + 1) * each)


def held(total: int, rank: int, size: int) -> list[int]:
    """The units that a rank holds."""
    return [unit for unit in range(total) if rank in holders(unit, total, size)]


@dataclass
class Model:
    """Numbers of all bytes, each one's own; 0 is poison. ``kv``: (layer, part, token, head, byte)."""

    case: Case
    kv: np.ndarray = field(init=False)
    state: dict[str, np.ndarray] = field(init=False)
    aux: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        case = self.case
        heads, width = (1, 3) if case.mla else (case.heads, 2)
        # Every side's last page in full: what lies behind the prompt is there, and must not be moved.
        span = max(case.source.page, case.destination.page)
        tokens = -(-case.tokens // span) * span
        counter = 1

        def fresh(*shape: int) -> np.ndarray:
            nonlocal counter
            first, counter = counter, counter + int(np.prod(shape))
            return np.arange(first, counter, dtype=np.uint32).reshape(shape)

        self.kv = fresh(case.layers, len(case.parts), tokens, heads, width)
        channels = int(np.lcm(case.source.tp, case.destination.tp))
        self.state = {  # convolution channels sharded alike on no side but by number, groups that all ranks hold
            "x": fresh(case.layers, STATE_ROWS, 2 * channels, 2),
            "b": fresh(case.layers, STATE_ROWS, 1, 3),
        }
        self.aux = fresh(11)

    def page_bytes(self, side: Side, rank: int, layer: int, positions: np.ndarray) -> list[np.ndarray]:
        """For each buffer of a layer on a tensor-parallel rank, the bytes of its pages: (position, byte)."""
        heads = held(self.kv.shape[3], rank, side.tp)
        parts = []
        for part in range(len(self.case.parts)):
            tokens = self.kv[layer, part][:, heads]
            pages = tokens.reshape(-1, side.page, *tokens.shape[1:])[positions]
            if side.order == "HND":
                pages = pages.transpose(0, 2, 1, 3)
            parts.append(pages.reshape(len(positions), int(np.prod(pages.shape[1:]))))
        return [np.concatenate(parts, axis=1)] if side.fused else parts

    def wanted(self, side: Side, rank: int, layer: int, positions: np.ndarray) -> list[np.ndarray]:
        """The same, poison where a token is not moved: behind the prompt."""
        whole = self.kv
        self.kv = np.where(np.arange(whole.shape[2])[:, None, None] < self.case.tokens, whole, POISON)
        try:
            return self.page_bytes(side, rank, layer, positions)
        finally:
            self.kv = whole

    def state_bytes(self, side: Side, rank: int, layer: int) -> np.ndarray:
        """The bytes of an item of convolution state: rows of x, then b."""
        rows = [
            array[layer][:, held(array.shape[2], rank, side.tp)].reshape(STATE_ROWS, -1)
            for array in self.state.values()
        ]
        return np.concatenate(rows, axis=1).ravel()
