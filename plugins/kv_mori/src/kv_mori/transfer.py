"""One submission: parts by pair of regions, the engine's status of each, and what they add up to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from kv_core import TransferState
from kv_core.contract.transport import U64, CopyList, PeerKey, Transfer

Sums: TypeAlias = npt.NDArray[np.int64]
MAX_CALL_BYTES = 2**30
"""Bytes of one part: MORI joins neighbours into one work request, and devices take 1 or 2 GiB at once."""


class Part(NamedTuple):
    """Copies between one local and one remote region. ``weight``: work requests that they may take."""

    local: Any
    local_offsets: list[int]
    remote: Any
    remote_offsets: list[int]
    sizes: list[int]
    weight: int


class MoriTransfer(Transfer):
    """``held``: parts not posted yet. ``pending``: statuses that were not final at the last look. ``statuses``: all of
    them, which the engine writes to through bare pointers: they must outlive its interest, so nobody drops them early.
    """

    __slots__ = ("error", "held", "news", "pending", "proven", "statuses", "weight")

    def __init__(self, peer: PeerKey, nbytes: int, parts: Iterator[Part]) -> None:
        super().__init__(peer, nbytes)
        self.held = deque(parts)
        self.pending: list[Any] = []
        self.statuses: list[Any] = []
        self.weight = 0  # of what is posted and not known to be final
        self.error: str | None = None
        self.proven = True  # of what was posted, nothing has failed
        self.news = False  # it moved on since somebody looked at this

    @property
    def state(self) -> TransferState:
        """As of the last look."""
        if self.error is not None:
            return TransferState.FAILED
        return TransferState.PENDING if self.pending or self.held else TransferState.DONE

    def posted(self, statuses: list[Any]) -> None:
        """The engine has taken some parts."""
        self.statuses += statuses
        self.pending += statuses

    def fail(self, error: str) -> None:
        """The first cause stays; what is held back is never posted."""
        if self.error is None:
            self.error = error
            self.news = True
        self.held.clear()

    def look(self, *, thorough: bool) -> None:
        """Ask the engine: the last pending status, and so on as long as they are final; if ``thorough``, or if one of them
        has failed, all of them: an earlier one may have failed before, for the reason that the others only follow.
        """
        pending, failed = self.pending, []
        while pending and not pending[-1].InProgress():
            status = pending.pop()
            if not status.Succeeded():
                failed.append(status)
        if pending and (thorough or failed):
            waiting = [status for status in pending if status.InProgress()]
            if len(waiting) < len(pending):
                still = set(map(id, waiting))
                settled = [status for status in pending if id(status) not in still]
                failed += [status for status in reversed(settled) if not status.Succeeded()]
                pending[:] = waiting
        if failed:
            self.proven = False
            self.fail(describe_failure(failed[-1].Code().name, failed[-1].Message()))
        self.news = self.news or not pending


SENTENCES = {
    "INIT": "MORI never took the transfer up: no route to the peer's memory",
    "ERR_INVALID_ARGS": "MORI refused the transfer's arguments",
    "ERR_NOT_FOUND": "MORI does not know the memory or the peer any more",
    "ERR_RDMA_OP": (
        "an RDMA operation failed; if the peer lives, its queue pair is broken nevertheless, and MORI makes no other one: "
        "restart one of the two processes"
    ),
    "ERR_BAD_STATE": "MORI has no usable route to the peer",
    "ERR_GPU_OP": "a GPU operation failed",
}


def describe_failure(code: str, message: str) -> str:
    """The sentence for a ``StatusCode`` that is neither SUCCESS nor IN_PROGRESS, with the engine's own words."""
    sentence = SENTENCES.get(code, "MORI reports a failure that kv-mori does not know")
    return f"{sentence} ({code}{': ' + message if message else ''})"


def cut(copies: CopyList, regions: tuple[list[Any], list[Any]], limit: int, chunks: tuple[int, int]) -> Iterator[Part]:
    """Parts of at most ``limit`` work requests and ``MAX_CALL_BYTES``, in the order of pairs; each pair's copies keep
    their order. ``chunks``: the size above which MORI splits a copy (0: never), and into how many at most.
    """
    copies = copies.cut(MAX_CALL_BYTES)
    local, remote = copies.local_region.astype(np.intp), copies.remote_region.astype(np.intp)
    pair = local * len(regions[1]) + remote
    order = np.argsort(pair, kind="stable")
    pair = pair[order]
    ends = np.append(np.flatnonzero(np.diff(pair)) + 1, len(order))
    starts = np.append(0, ends[:-1])
    sums = np.cumsum(_weights(copies.length[order], *chunks))
    nbytes = np.cumsum(copies.length[order].astype(np.int64))
    columns = [column[order].tolist() for column in (copies.local_offset, copies.remote_offset, copies.length)]
    mine, theirs = local[order[starts]].tolist(), remote[order[starts]].tolist()
    for at, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        for first, stop, weight in _pieces(start, end, limit, sums, nbytes):
            offsets, remotes, sizes = (column[first:stop] for column in columns)
            yield Part(regions[0][mine[at]], offsets, regions[1][theirs[at]], remotes, sizes, weight)


def _pieces(start: int, end: int, limit: int, sums: Sums, nbytes: Sums) -> Iterator[tuple[int, int, int]]:
    """Ranges within start..end with their weights; nearly always a single one."""
    while start < end:
        before, bytes_before = (int(sums[start - 1]), int(nbytes[start - 1])) if start else (0, 0)
        stop = end
        if sums[end - 1] > before + limit or nbytes[end - 1] > bytes_before + MAX_CALL_BYTES:
            fits = int(np.searchsorted(sums, before + limit, side="right"))
            fits_bytes = int(np.searchsorted(nbytes, bytes_before + MAX_CALL_BYTES, side="right"))
            stop = max(min(end, fits, fits_bytes), start + 1)
        yield start, stop, int(sums[stop - 1]) - before
        start = stop


def _weights(lengths: U64, chunk_bytes: int, most: int) -> Sums:
    if not chunk_bytes:
        return np.ones(len(lengths), np.int64)
    return np.minimum(-(-lengths.astype(np.int64) // chunk_bytes), most)
