"""What a process holds: resident memory, threads, descriptors."""

from __future__ import annotations

import gc

import psutil


def usage(pid: int | None = None) -> dict[str, int]:
    """``rss`` in bytes, ``threads``, ``fds``. Of this process, after a garbage collection, unless a pid is given."""
    if pid is None:
        gc.collect()
    process = psutil.Process(pid)
    return {"rss": process.memory_info().rss, "threads": process.num_threads(), "fds": process.num_fds()}
