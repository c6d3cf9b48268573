"""Index arithmetic. Pure: layouts and indices in, byte ranges out; NumPy arrays throughout, no object per page.

``memory_map`` reads both sides' memory. ``planner`` relates them once per peer: for unequal topologies ``entries`` lists the
blocks, ``lanes`` works out what they have in common, by the rules in ``shares``; ``ranks`` says which ranks serve which.
``placement`` says where pages stand in a prompt, ``pages`` and ``batch`` turn a chunk's indices into copies, ``digest_view`` says which bytes a digest covers, ``bounds``
checks indices, ``coverage`` says when a room ends, ``explain`` tells what would move.
"""

from kv_core.layout.batch import Batch, make_batch, pool_plan, slice_for
from kv_core.layout.bounds import check_indices
from kv_core.layout.compare_items import Sides, missing_layers
from kv_core.layout.compare_items import described as is_described
from kv_core.layout.coverage import Coverage
from kv_core.layout.digest_view import Segments, mirror, segments
from kv_core.layout.explain import Move, explain
from kv_core.layout.memory_map import MemoryLayout, PoolLayout
from kv_core.layout.mismatch import Difference, LayoutMismatch, UnsupportedTopology
from kv_core.layout.pages import Pages, Pairs, page_batch, page_slices, pair_pages
from kv_core.layout.placement import PageSide, Placement
from kv_core.layout.planner import differences, findings, plan_transfer, pools_sent
from kv_core.layout.ranks import RankMapping, Stages, check_sizes, even_stages, serving, source_ranks

__all__ = [
    "Batch",
    "Coverage",
    "Difference",
    "LayoutMismatch",
    "MemoryLayout",
    "Move",
    "PageSide",
    "Pages",
    "Pairs",
    "Placement",
    "PoolLayout",
    "RankMapping",
    "Segments",
    "Sides",
    "Stages",
    "UnsupportedTopology",
    "check_indices",
    "check_sizes",
    "differences",
    "even_stages",
    "explain",
    "findings",
    "is_described",
    "make_batch",
    "mirror",
    "missing_layers",
    "page_batch",
    "page_slices",
    "pair_pages",
    "plan_transfer",
    "pool_plan",
    "pools_sent",
    "segments",
    "serving",
    "slice_for",
    "source_ranks",
]
