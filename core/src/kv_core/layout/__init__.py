"""Index arithmetic. Pure: layouts and indices in, byte ranges out; NumPy arrays throughout, no object per page.

``memory_map`` reads both sides' memory, ``planner`` relates them once per peer, ``batch`` turns a chunk's indices into
copies, ``digest_view`` says which bytes a digest covers, ``bounds`` checks indices, ``coverage`` says when a room ends.
"""

from kv_core.layout.batch import Batch, make_batch, pool_plan, slice_for
from kv_core.layout.bounds import check_indices
from kv_core.layout.coverage import Coverage
from kv_core.layout.digest_view import Segments, mirror, segments
from kv_core.layout.memory_map import MemoryLayout, PoolLayout
from kv_core.layout.mismatch import Difference, LayoutMismatch, UnsupportedTopology
from kv_core.layout.planner import RankMapping, differences, plan_transfer, source_ranks

__all__ = [
    "Batch",
    "Coverage",
    "Difference",
    "LayoutMismatch",
    "MemoryLayout",
    "PoolLayout",
    "RankMapping",
    "Segments",
    "UnsupportedTopology",
    "check_indices",
    "differences",
    "make_batch",
    "mirror",
    "plan_transfer",
    "pool_plan",
    "segments",
    "slice_for",
    "source_ranks",
]
