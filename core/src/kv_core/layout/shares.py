"""Who holds what, and who sends what several hold: the rules on which both sides of a transfer agree."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kv_core.contract.memory import Topology

I64 = npt.NDArray[np.int64]


def divides(total: int, tp_size: int) -> bool:
    """Whether ``total`` units can be shared: each rank holds as many, or each unit has as many holders."""
    return not (total % tp_size and tp_size % total)


def first_unit(total: I64, tp_rank: int, tp_size: int) -> I64:
    """The first unit that a rank holds."""
    return tp_rank * total // tp_size


def sender(copy: int, copies: int, holders: int) -> int:
    """Which of ``holders`` equal holders sends to number ``copy`` of ``copies`` receivers of the same bytes: all of them
    have as many receivers, give or take one. Where there are more holders than receivers it is the first of ``spare``.
    """
    return copy * holders // copies


def spare(total: int, source_size: int, destination_size: int) -> int:
    """How many of prefill's ranks could send each unit to one decode rank without sending it to another one as well.

    They take turns, layer by layer: a network card belongs to a rank, and a room should use them all.
    """
    return max(max(source_size // total, 1) // max(destination_size // total, 1), 1)


def sends_units(total: int, source: Topology, destination: Topology, layer: I64) -> npt.NDArray[np.bool_]:
    """Whether prefill's rank ``source`` is the one that sends the units that both ranks hold, of ``total`` units in the
    model, in each of these layers (negative: of no layer). True as well if they hold none in common.
    """
    holders, copies = max(source.tp_size // total, 1), max(destination.tp_size // total, 1)
    turn = (np.maximum(layer, 0) + destination.dp_rank) % spare(total, source.tp_size, destination.tp_size)
    chosen: npt.NDArray[np.bool_] = (
        sender(destination.tp_rank % copies, copies, holders) + turn == source.tp_rank % holders
    )
    return chosen


def sends_whole(source: Topology, destination: Topology) -> bool:
    """Whether the context-parallel rank of ``source`` sends what all of them hold: state and auxiliary rows."""
    return source.cp_rank == sender(destination.cp_rank, destination.cp_size, source.cp_size)


def sends_unlayered(source: Topology, destination: Topology) -> bool:
    """Whether this pipeline stage sends what belongs to no layer: the one at the same place if there are as many stages,
    else the last one, which makes the first token.
    """
    chosen = destination.pp_rank if source.pp_size == destination.pp_size else source.pp_size - 1
    return source.pp_rank == chosen


def share_pages(source: Topology, destination: Topology, source_ratio: int = 1, destination_ratio: int = 1) -> bool:
    """Whether any position of a prompt is in a page of both ranks.

    Page p of a prompt belongs to context-parallel rank ``p % cp_size``. The ratios say how many of the smaller side's
    pages each side's page is; one of them is 1.
    """
    return bool(
        page_matrix(source.cp_size, destination.cp_size, source_ratio, destination_ratio)[
            destination.cp_rank, source.cp_rank
        ]
    )


def page_matrix(
    sources: int, destinations: int, source_ratio: int = 1, destination_ratio: int = 1
) -> npt.NDArray[np.bool_]:
    """``share_pages`` for all context-parallel ranks: bool of shape (destinations, sources)."""
    period = np.arange(int(np.lcm(sources * source_ratio, destinations * destination_ratio)))
    found = np.zeros((destinations, sources), np.bool_)
    found[period // destination_ratio % destinations, period // source_ratio % sources] = True
    return found
