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
    """Numbers of all bytes, each one's own; 0 is poison.

    ``kv``: for each layer (part, token, head, byte), every second layer's heads a byte longer. ``window``: the same of the
    odd layers' other pages, of which only those from token ``begin`` on are kept.
    """

    case: Case
    kv: list[np.ndarray] = field(init=False)
    window: dict[int, np.ndarray] = field(init=False)
    begin: int = field(init=False)
    state: dict[str, np.ndarray] = field(init=False)
    opaque: np.ndarray = field(init=False)
    aux: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        case = self.case
        heads, width = (1, 3) if case.mla else (case.heads, 2)
        # Every side's last page in full: what lies behind the prompt is there, and must not be moved.
        span = max(case.source.page, case.destination.page)
        tokens = -(-case.tokens // span) * span
        self.begin = case.tokens // 2 // span * span
        counter = 1

        def fresh(*shape: int) -> np.ndarray:
            nonlocal counter
            first, counter = counter, counter + int(np.prod(shape))
            return np.arange(first, counter, dtype=np.uint32).reshape(shape)

        self.kv = [fresh(len(case.parts), tokens, heads, width + layer % 2) for layer in range(case.layers)]
        self.window = {layer: fresh(1, tokens, heads, 1) for layer in range(1, case.layers, 2)}
        channels = int(np.lcm(case.source.tp, case.destination.tp))
        self.state = {  # convolution channels that all sizes share, and a group that every rank holds
            "x": fresh(case.layers, STATE_ROWS, 2 * channels, 2),
            "b": fresh(case.layers, STATE_ROWS, 1, 3),
        }
        self.opaque = fresh(case.layers, case.source.tp, 7)  # moves between equal tensor parallel sizes only
        self.aux = fresh(11)

    def cut(self, side: Side, rank: int, whole: np.ndarray, positions: np.ndarray, *, wanted: bool) -> list[np.ndarray]:
        """The bytes of the pages at these positions on a tensor-parallel rank, (position, byte): for each part, or of all
        parts together. ``wanted``: poison where a token is not moved, behind the prompt.
        """
        parts = []
        for tokens in whole:
            if wanted:
                tokens = np.where(np.arange(len(tokens))[:, None, None] < self.case.tokens, tokens, POISON)  # noqa: PLW2901
            mine = tokens[:, held(tokens.shape[1], rank, side.tp)]
            pages = mine.reshape(-1, side.page, *mine.shape[1:])[positions]
            if side.order == "HND":
                pages = pages.transpose(0, 2, 1, 3)
            parts.append(pages.reshape(len(positions), int(np.prod(pages.shape[1:]))))
        return [np.concatenate(parts, axis=1)] if side.fused else parts

    def state_bytes(self, side: Side, rank: int, layer: int) -> np.ndarray:
        """The bytes of an item of convolution state: rows of x, then b."""
        rows = [
            array[layer][:, held(array.shape[2], rank, side.tp)].reshape(STATE_ROWS, -1)
            for array in self.state.values()
        ]
        return np.concatenate(rows, axis=1).ravel()
