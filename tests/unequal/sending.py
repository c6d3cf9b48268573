"""In which pieces a prefill rank hands a prompt over: several sends, layer by layer, state with any of them; by a seed."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tests.unequal.memory import WINDOW

STYLES = ("whole", "pages", "layers", "both")
"""One send; several of pages; several of layers; each part of the layers in several of pages."""
BEYOND = 4
"""A range of layers may name some that the rank does not have: stages are told the whole model's."""


class Send(NamedTuple):
    """One call of ``send``."""

    pages: np.ndarray
    layers: range | None
    states: dict[str, np.ndarray]


def sends(
    style: str, rng: np.random.Generator, pages: np.ndarray, layers: range, states: dict[str, np.ndarray]
) -> list[Send]:
    """Every page on every layer once, every item of state once."""
    parts = cut(rng, len(pages)) if style in ("pages", "both") else [(0, len(pages))]
    ranges: list[range | None] = [None]
    if style in ("layers", "both") and len(pages):
        cuts = [(layers.start + first, layers.start + stop) for first, stop in cut(rng, len(layers))]
        ranges = [range(first if at else 0, stop) for at, (first, stop) in enumerate(cuts)]
        ranges[-1] = range(cuts[-1][0] if len(cuts) > 1 else 0, layers.stop + BEYOND)
    # Layer by layer on the outside: some layers are through while others have not begun.
    found = [Send(pages[first:stop], wanted, {}) for wanted in ranges for first, stop in parts]
    for name, items in states.items():
        at = sorted(rng.integers(0, len(found), 2).tolist())
        if name == WINDOW and len(items) > 1 and at[0] != at[1]:
            half = len(items) // 2
            found[at[0]].states[name], found[at[1]].states[name] = items[:half], items[half:]
        else:
            found[at[0]].states[name] = items
    return found


def cut(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """0 to ``count`` in up to three parts, at random; none of them is empty if there is anything."""
    inner = rng.permutation(np.arange(1, count))[:2].tolist() if count > 1 else []
    return list(pairwise([0, *sorted(inner), count]))
