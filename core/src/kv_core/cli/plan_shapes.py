"""Made-up ranks of a model's two sides, for ``kv-core plan``: layouts without memory behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

from kv_core.contract.items import ItemLayout
from kv_core.contract.memory import Buffer, KVArgs, Pool, Topology
from kv_core.layout import MemoryLayout, RankMapping, UnsupportedTopology, even_stages, source_ranks
from kv_core.layout.explain import Move, explain
from kv_core.layout.ranks import Ranks, check_sizes

AXES = ("tp", "pp", "cp", "dp")
LARGEST = 1_024
"""Most ranks of one side: beyond that nobody reads the table."""


@dataclass(frozen=True)
class Shape:
    """The model and both sides' pages."""

    heads: int = 8
    layers: int = 32
    head_bytes: int = 256
    page_size: int = 16
    decode_page_size: int = 16
    layout: str = "NHD"
    decode_layout: str = "NHD"
    mla: bool = False


@dataclass(frozen=True)
class Plan:
    """Either what would move, rank by rank, or why nothing can."""

    prefill: Ranks
    decode: Ranks
    tokens: int
    moves: list[Move] = field(default_factory=list)
    mappings: dict[Ranks, RankMapping] = field(default_factory=dict)
    refused: UnsupportedTopology | None = None


def parse_sizes(text: str) -> Ranks:
    """``tp=4,pp=2`` as (tp, pp, cp, dp) sizes. Raises ``ValueError``."""
    sizes = dict.fromkeys(AXES, 1)
    for part in filter(None, (part.strip() for part in text.split(","))):
        axis, _, number = part.partition("=")
        if axis not in AXES or not number.isdecimal() or int(number) < 1:
            raise ValueError(f"sizes are written tp=4,pp=2,cp=1,dp=1, each at least 1; got {part!r}")
        sizes[axis] = int(number)
    tp, pp, cp, dp = (sizes[axis] for axis in AXES)
    if tp * pp * cp * dp > LARGEST:
        raise ValueError(f"{text!r} is {tp * pp * cp * dp} ranks: at most {LARGEST} are worked out here")
    return (tp, pp, cp, dp)


def make_plan(prefill: Ranks, decode: Ranks, shape: Shape) -> Plan:
    """What would move to the ranks of decode's first data-parallel rank, from prefill's first.

    Raises ``ValueError`` for a shape that makes no sense.
    """
    tokens = min(shape.page_size, shape.decode_page_size)
    stages = even_stages(shape.layers, (prefill[1], decode[1]))
    if not all((*stages.prefill, *stages.decode)):
        raise ValueError(f"{shape.layers} layers can't be cut into {max(prefill[1], decode[1])} pipeline stages")
    try:
        whole = _layout(shape, Topology(), stages.decode[0], there=True)
        check_sizes(_topology((0, 0, 0, 0), decode), prefill, whole, shape.page_size)
    except UnsupportedTopology as error:
        return Plan(prefill, decode, tokens, refused=error)
    sources: dict[Ranks, tuple[MemoryLayout, Topology]] = {}
    moves: list[Move] = []
    mappings: dict[Ranks, RankMapping] = {}
    for tp, pp, cp in product(*map(range, decode[:3])):
        place = _topology((tp, pp, cp, 0), decode)
        layout = _layout(shape, place, stages.decode[pp], there=True)
        mapping = source_ranks(place, prefill, 0, layout, page_size=shape.page_size, stages=stages)
        mappings[place.ranks] = mapping
        for ranks in mapping.required:
            if ranks not in sources:
                source = _topology(ranks, prefill)
                sources[ranks] = (_layout(shape, source, stages.prefill[ranks[1]], there=False), source)
            moves += explain(sources[ranks][0], layout, sources[ranks][1], place)
    return Plan(prefill, decode, tokens, moves, mappings)


def _topology(ranks: Ranks, sizes: Ranks) -> Topology:
    (tp, pp, cp, dp), (tps, pps, cps, dps) = ranks, sizes
    return Topology(tp, tps, pp, pps, cp, cps, dp, dps)


def _layout(shape: Shape, place: Topology, layers: frozenset[int], *, there: bool) -> MemoryLayout:
    tokens, order = (shape.decode_page_size, shape.decode_layout) if there else (shape.page_size, shape.layout)
    heads = 1 if shape.mla else shape.heads
    item = ItemLayout.page(tokens, heads, shape.head_bytes, tp_size=place.tp_size, order=order)
    parts = ("latent",) if shape.mla else ("k", "v")
    buffers = tuple(Buffer(4_096, item.nbytes, 1, layer, part, item) for layer in sorted(layers) for part in parts)
    return MemoryLayout.of(
        KVArgs(Pool("kv", buffers), aux=Pool.uniform("aux", [4_096], 1_600, 1), page_size=tokens, topology=place)
    )
