"""What the ranks of one instance have in common: their shares of a model, sums, and an agreement on what happens next."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from kv_core.contract.items import units_held

LIMIT = timedelta(seconds=120)
"""Longest that a rank waits for the others."""


class Group:
    """One instance's ranks, a process each, as one of them sees them. They meet in the file ``store``, then talk over TCP
    on the loopback interface. Every rank must make the same calls in the same order; each call waits for all of them, and
    raises ``RuntimeError`` if one of them has ended.
    """

    def __init__(self, rank: int, size: int, store: Path) -> None:
        self.rank, self.size = rank, size
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=LIMIT)

    def share(self, total: int) -> slice:
        """Which of the model's ``total`` units (heads, columns) are this rank's: kv-core's rule, ``ItemLayout`` relies on it."""
        first = self.rank * total // self.size
        return slice(first, first + units_held(total, self.size))

    def add_up(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum of what all ranks have computed, in place; the same bits on every rank."""
        dist.all_reduce(partial)
        return partial

    def least(self, values: list[int]) -> list[int]:
        """Of each value the least that any rank has. All ranks give as many values and get the same answer."""
        agreed = torch.tensor(values)
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
        return [int(value) for value in agreed]
