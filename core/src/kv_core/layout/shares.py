"""Who holds what, and who sends what several hold: the rules on which both sides of a transfer agree."""

from __future__ import annotations

from math import gcd, lcm
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kv_core.contract.memory import Topology

I64 = npt.NDArray[np.int64]
Ints: TypeAlias = "int | I64"


def divides(total: int, tp_size: int) -> bool:
    """Whether ``total`` units can be shared: each rank holds as many, or each unit has as many holders."""
    return not (total % tp_size and tp_size % total)


def first_unit(total: I64, tp_rank: Ints, tp_size: int) -> I64:
    """The first unit that a rank holds."""
    return tp_rank * total // tp_size


def sender(copy: Ints, copies: int, holders: int) -> Ints:
    """Which of ``holders`` equal holders sends to number ``copy`` of ``copies`` receivers of the same bytes: all of them
    have as many receivers, give or take one. Where there are more holders than receivers it is the first of ``spare``.
    """
    return copy * holders // copies


def spare(total: int, source_size: int, destination_size: int) -> int:
    """How many of prefill's ranks could send each unit to one decode rank without sending it to another one as well.

    They take turns, layer by layer: a network card belongs to a rank, and a room should use them all.
    """
    return max(max(source_size // total, 1) // max(destination_size // total, 1), 1)


def sends_units(
    total: int, source_rank: Ints, source_size: int, rank: Ints, size: int, turn: Ints
) -> npt.NDArray[np.bool_]:
    """Whether prefill's tensor-parallel rank is the one that sends the units that it and decode's ``rank`` both hold, of
    ``total`` units in the model; True as well if they hold none in common. ``turn``: layer plus decode's data-parallel rank.
    """
    holders, copies = max(source_size // total, 1), max(size // total, 1)
    chosen = sender(rank % copies, copies, holders) + turn % spare(total, source_size, size)
    return np.asarray(chosen == source_rank % holders)


def sends_whole(source: Topology, destination: Topology) -> bool:
    """Whether the context-parallel rank of ``source`` sends what all of them hold: state and auxiliary rows."""
    return source.cp_rank == sender(destination.cp_rank, destination.cp_size, source.cp_size)


def sends_unlayered(source: Topology, destination: Topology) -> bool:
    """Whether this pipeline stage sends what belongs to no layer: the one at the same place if there are as many stages,
    else the last one, which makes the first token.
    """
    chosen = destination.pp_rank if source.pp_size == destination.pp_size else source.pp_size - 1
    return source.pp_rank == chosen


def shared_pages(
    source: Topology, destination: Topology, source_ratio: int = 1, destination_ratio: int = 1
) -> tuple[int, int]:
    """How many of the smaller side's pages both ranks have, in so many that follow each other.

    Page p of a prompt belongs to context-parallel rank ``p % cp_size``. The ratios say how many of the smaller side's
    pages each side's page is; one of them is 1.
    """
    pair = (source, destination) if source_ratio == 1 else (destination, source)
    (rank, size), (large_rank, large_size) = ((place.cp_rank, place.cp_size) for place in pair)
    ratio = source_ratio * destination_ratio
    # Parts 0 to ratio - 1 of the larger page: every step-th of them, from the first on, has its twin here.
    step = gcd(size, large_size * ratio)
    first = (rank - large_rank * ratio) % step
    return len(range(first, ratio, step)), lcm(size, large_size * ratio)


def page_matrix(
    sources: int, destinations: int, source_ratio: int = 1, destination_ratio: int = 1
) -> npt.NDArray[np.bool_]:
    """Whether context-parallel ranks have a page in common: bool of shape (destinations, sources)."""
    theirs, mine = np.arange(sources), np.arange(destinations)[:, None]
    if source_ratio == 1:
        step = gcd(sources, destinations * destination_ratio)
        return np.asarray((theirs - mine * destination_ratio) % step < destination_ratio)
    step = gcd(destinations, sources * source_ratio)
    return np.asarray((mine - theirs * source_ratio) % step < source_ratio)
