"""Is what a process holds flat? Memory, threads and descriptors, compared after everything has come to rest."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Mapping
from typing import Any

from tests.support.pair import LASTING, TOTALS, at_rest
from tests.support.usage import usage
from tests.support.waiting import wait_until

RSS_BYTES_PER_ROOM = 200
RSS_NOISE_BYTES = 2 << 20
"""What an allocator may keep for itself, however few rooms there were."""
RSS_LIMIT_BYTES = 8 << 20
REST_S = 60.0
LOOKS = 12
M_ARENA_MAX = -8
"""Of ``mallopt``, see ``malloc.h``."""
FLEETING = (LASTING | {"fabrics"}) - {"tombstones"}
"""What may still be there at rest: sessions, but no memory of any room."""


def one_arena() -> None:
    """Let all threads allocate from one heap, where the C library can: what is free in many is not seen as free."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_ARENA_MAX, 1)


def settled_usage() -> dict[str, int]:
    """See ``usage``, after free memory was given back to the system, where the C library can.

    Threads and descriptors are those that stay: a probe under way has a connection for a moment.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    looks: list[dict[str, int]] = []

    def enough() -> bool:
        looks.append(usage(os.getpid()))
        return len(looks) == LOOKS

    wait_until(enough)
    return {name: min(look[name] for look in looks) for name in looks[0]}


def await_rest(snapshots: Mapping[str, Callable[[], Mapping[str, Any]]]) -> list[str]:
    """Wait until no counter of any of these says that something is alive; what still is, if it does not end."""

    def alive() -> list[str]:
        ignore = TOTALS | FLEETING
        return [f"{name}: {text}" for name, look in snapshots.items() for text in at_rest(look(), ignore=ignore)]

    try:
        wait_until(lambda: not alive(), "rest", REST_S)
    except AssertionError:
        return alive()
    return []


def growth(before: Mapping[str, int], after: Mapping[str, int], rooms: int) -> list[str]:
    """What is not flat after so many rooms."""
    found = [
        f"{name}: {before[name]} before, {after[name]} after"
        for name in ("threads", "fds")
        if after[name] != before[name]
    ]
    return found + memory_growth(before, after, rooms)


def memory_growth(before: Mapping[str, int], after: Mapping[str, int], rooms: int) -> list[str]:
    """Whether memory has grown by more than is allowed for so many rooms."""
    grown, limit = after["rss"] - before["rss"], min(RSS_LIMIT_BYTES, RSS_NOISE_BYTES + RSS_BYTES_PER_ROOM * rooms)
    return [] if grown < limit else [f"memory grew by {grown} bytes in {rooms} rooms, at most {limit} are allowed"]
