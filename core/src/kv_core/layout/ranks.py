"""Which prefill ranks serve a decode rank, worked out before they have met: from sizes and decode's own layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from kv_core.contract.memory import AUX_POOL, NO_LAYER, Topology
from kv_core.layout.compare_items import COUNT, MAX_RANKS, MAX_RATIO, NUMBERED, OPAQUE, PAGES, SHARES, described
from kv_core.layout.memory_map import MemoryLayout, PoolLayout
from kv_core.layout.mismatch import Difference, UnsupportedTopology
from kv_core.layout.planner import AXES, EQUAL_SIZES, UNLESS_DESCRIBED
from kv_core.layout.shares import divides, first_unit, page_matrix, sender, sends_units, sends_unlayered, spare

Ranks: TypeAlias = tuple[int, int, int, int]
"""(tp, pp, cp, dp) ranks, or sizes, as ``Topology.ranks`` and ``Topology.sizes`` give them."""
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RankMapping:
    """Which prefill ranks serve one decode rank.

    ``required``: those that must send for a room to succeed, and as many answers complete it. ``dummies``: those that
    serve no decode rank and must be told of the room, so that they can end it, by this one. ``destinations``: for each
    required rank, how many decode ranks it serves; ``expected_destinations``: the most of these.
    """

    required: tuple[Ranks, ...]
    dummies: tuple[Ranks, ...] = ()
    expected_destinations: int = 1
    destinations: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stages:
    """The layers of each pipeline stage of both sides, draft layers included, where both are known."""

    prefill: tuple[frozenset[int], ...]
    decode: tuple[frozenset[int], ...]


class _Kind(NamedTuple):
    """What is the same for many blocks: how they are shared. ``tokens``: of a page; 0: no page."""

    total: int
    tokens: int
    layered: bool


def source_ranks(
    local: Topology,
    remote_sizes: Ranks,
    prefill_dp_rank: int,
    layout: MemoryLayout | None = None,
    *,
    page_size: int = 0,
    stages: Stages | None = None,
) -> RankMapping:
    """The prefill ranks that serve the decode rank ``local``; ``remote_sizes`` are prefill's (tp, pp, cp, dp) sizes.

    ``layout``: this rank's memory; None, or an opaque KV pool: sizes must be equal. ``page_size``: prefill's, in tokens
    (0: as here). ``stages``: without them a stage is served by the stage at its place if there are as many, else by all of
    them. Raises ``UnsupportedTopology`` (a ``ValueError``) with the rules that are broken.
    """
    _check_dp(prefill_dp_rank, remote_sizes)
    if layout is None or not described(layout):
        sizes = zip(AXES, local.sizes, remote_sizes, strict=False)  # dp, the last, need not be equal
        found = [Difference(f"{axis}_size", str(mine), str(theirs)) for axis, mine, theirs in sizes if mine != theirs]
        if found:
            # Who names no layout can't plan for other sizes, and describing items would not help.
            raise UnsupportedTopology(EQUAL_SIZES if layout is None else UNLESS_DESCRIBED, found)
        return RankMapping(((local.tp_rank, local.pp_rank, local.cp_rank, prefill_dp_rank),))
    check_sizes(local, remote_sizes, layout, page_size)
    serves = serving(local, remote_sizes, layout, page_size=page_size, stages=stages)
    mine = (local.tp_rank * local.pp_size + local.pp_rank) * local.cp_size + local.cp_rank
    places = [(*place, prefill_dp_rank) for place in product(*map(range, remote_sizes[:3]))]
    required = np.flatnonzero(serves[mine]).tolist()
    idle = np.flatnonzero(~serves.any(axis=0))
    counts = serves.sum(axis=0)
    destinations = tuple(int(counts[at]) for at in required)
    return RankMapping(
        tuple(places[at] for at in required),
        tuple(places[at] for at in idle[mine :: serves.shape[0]].tolist()),
        max(destinations, default=1),
        destinations,
    )


def _check_dp(prefill_dp_rank: int, remote_sizes: Ranks) -> None:
    if not 0 <= prefill_dp_rank < remote_sizes[3]:
        rule = f"prefill_dp_rank must lie in 0..{remote_sizes[3] - 1}, prefill's dp_size less one"
        raise UnsupportedTopology(
            rule, [Difference("prefill_dp_rank", str(prefill_dp_rank), f"dp_size {remote_sizes[3]}")]
        )


def _check_count(sizes: Ranks, local: Topology) -> None:
    counts = tuple(one[0] * one[1] * one[2] for one in (local.sizes, sizes))
    if max(counts) > MAX_RANKS or sizes[3] > MAX_RANKS:
        raise UnsupportedTopology(COUNT, [Difference("ranks", str(local.sizes), str(sizes))])


def check_sizes(local: Topology, remote_sizes: Ranks, layout: MemoryLayout, page_size: int = 0) -> None:
    """Raise ``UnsupportedTopology`` with every rule that prefill's sizes break with this rank's described layout."""
    _check_count(remote_sizes, local)
    rules: dict[str, list[Difference]] = {}
    sizes = (local.tp_size, remote_sizes[0])
    for pool in layout.pools:
        if not pool.items and pool.name != AUX_POOL:
            if sizes[0] != sizes[1]:
                rules.setdefault(OPAQUE, []).append(Difference(f"{pool.name}: tp_size", *map(str, sizes)))
            continue
        for total in sorted({kind.total for kind in _kinds_of(pool, local)}):
            if not all(divides(total, size) for size in sizes):
                told = [f"{total} units by {size} ranks" for size in sizes]
                rules.setdefault(SHARES, []).append(Difference(f"{pool.name}.total", *told))
    kv = layout.pools[0]
    if local.pp_size != remote_sizes[1] and int(kv.layer.min()) == NO_LAYER:
        rules.setdefault(NUMBERED, []).append(Difference("pp_size", str(local.pp_size), str(remote_sizes[1])))
    small, large = sorted((kv.tokens, page_size or kv.tokens))
    if large % small or large // small > MAX_RATIO:
        rules.setdefault(PAGES, []).append(Difference("page_size", str(kv.tokens), str(page_size)))
    if rules:
        raise UnsupportedTopology("; ".join(rules), [d for found in rules.values() for d in found])


def _kinds_of(pool: PoolLayout, place: Topology) -> set[_Kind]:
    if pool.name == AUX_POOL:
        return {_Kind(1, 0, layered=False)}
    totals = {block.total for item in pool.items for block in item.blocks} or {place.tp_size}
    layered = {layer != NO_LAYER for layer in set(pool.layer.tolist())}
    return {_Kind(total, pool.tokens, numbered) for total in totals for numbered in layered}


def serving(
    local: Topology, remote_sizes: Ranks, layout: MemoryLayout, *, page_size: int = 0, stages: Stages | None = None
) -> Bools:
    """Which prefill rank serves which rank of decode's data-parallel rank: bool of shape (decode ranks, prefill ranks).

    Both counted (tp, pp, cp), the last axis fastest. ``check_sizes`` has passed.
    """
    tp, pp, cp, _ = remote_sizes
    count = local.tp_size * local.pp_size * local.cp_size
    found = np.zeros((local.tp_size, tp, local.pp_size, pp, local.cp_size, cp), np.bool_)
    for kind in {kind for pool in layout.pools for kind in _kinds_of(pool, local)}:
        by_cp = _cp_matrix(cp, local, kind.tokens, layout.pools[0].tokens, page_size)
        turns = spare(kind.total, tp, local.tp_size) if kind.layered else 1
        for turn in range(turns):
            by_tp = _tp_matrix(kind.total, tp, local, turn)
            by_pp = (
                _pp_matrix(pp, local.pp_size, stages, turn, turns) if kind.layered else _unlayered(pp, local.pp_size)
            )
            found |= by_tp[:, :, None, None, None, None] & by_pp[:, :, None, None] & by_cp
    by_rank: Bools = found.transpose(0, 2, 4, 1, 3, 5).reshape(count, tp * pp * cp)
    return by_rank


def _tp_matrix(total: int, size: int, local: Topology, turn: int) -> Bools:
    """Who sends the layers whose turn it is."""
    mine, theirs = np.arange(local.tp_size)[:, None], np.arange(size)
    first = first_unit(np.array(total), mine, local.tp_size), first_unit(np.array(total), theirs, size)
    stop = first[0] + max(total // local.tp_size, 1), first[1] + max(total // size, 1)
    found = sends_units(total, theirs, size, mine, local.tp_size, turn + local.dp_rank)
    return found & (np.maximum(*first) < np.minimum(*stop))


def _pp_matrix(prefill: int, decode: int, stages: Stages | None, turn: int, turns: int) -> Bools:
    """Which stages have a layer in common of those whose turn it is."""
    if stages is not None:
        if (len(stages.prefill), len(stages.decode)) != (prefill, decode):
            raise ValueError(
                f"layers of {len(stages.prefill)} and {len(stages.decode)} stages for {prefill} and {decode}"
            )
        found = np.zeros((decode, prefill), np.bool_)
        for mine, theirs in np.ndindex(found.shape):
            found[mine, theirs] = any(layer % turns == turn for layer in stages.decode[mine] & stages.prefill[theirs])
        return found
    return np.eye(prefill, dtype=np.bool_) if prefill == decode else np.ones((decode, prefill), np.bool_)


def _unlayered(prefill: int, decode: int) -> Bools:
    places = (
        (Topology(pp_rank=one, pp_size=prefill), Topology(pp_rank=other, pp_size=decode))
        for other in range(decode)
        for one in range(prefill)
    )
    return np.array([sends_unlayered(*pair) for pair in places]).reshape(decode, prefill)


def _cp_matrix(prefill: int, local: Topology, tokens: int, kv_tokens: int, page_size: int) -> Bools:
    found = np.zeros((local.cp_size, prefill), np.bool_)
    if not tokens:
        mine = np.arange(local.cp_size)
        found[mine, sender(mine, local.cp_size, prefill)] = True
    elif tokens == kv_tokens:
        theirs = page_size or tokens
        found = page_matrix(prefill, local.cp_size, theirs // min(tokens, theirs), tokens // min(tokens, theirs))
    else:
        found[:] = True  # pages of another size: prefill's is not known before the layouts are there
    return found


def even_stages(layers: int, sizes: Sequence[int]) -> Stages:
    """The layers 0 to ``layers - 1`` over (prefill, decode) stages, as evenly as they can be."""
    prefill, decode = (
        tuple(frozenset(range(stage * layers // size, (stage + 1) * layers // size)) for stage in range(size))
        for size in sizes
    )
    return Stages(prefill, decode)
