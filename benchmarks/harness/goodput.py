"""Bytes per second, and what they cost: kv-core over a backend against a plain socket, and the transport alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.figures import Spread
from benchmarks.harness.memory import Shape
from benchmarks.harness.ranks import Pair, RankFailed
from benchmarks.harness.work import Work

WAYS = ("socket", "core", "transport")
BUFFERS, ITEM_BYTES = 64, 32_768
VERIFIED_PAGES = 16


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    pages: int
    concurrency: int
    pattern: str = "random"

    def rooms(self, shape: Shape, target_bytes: int) -> int:
        """So many rooms are near the target; each slot has one at least."""
        return max(self.concurrency, round(target_bytes / (self.pages * shape.page_bytes)))


FULL = tuple(
    [Cell(pages, concurrency) for pages in (8, 64, 256) for concurrency in (1, 8, 32)]
    + [Cell(64, concurrency, "contiguous") for concurrency in (1, 8)]
)
QUICK = (Cell(8, 8), Cell(64, 1), Cell(64, 8), Cell(64, 8, "contiguous"))
FULL_POOLS, QUICK_POOLS = (512, 2_048), (256, 768)
"""Pages of the prefill and of the decode process: 64 x 32 KiB = 2 MiB each, so 5 GiB and 2 GiB in all."""
FULL_BYTES, QUICK_BYTES = 1_500_000_000, 1_000_000_000


def run(pair: Pair, *, quick: bool, rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure every cell ``rounds`` times in each way, the ways in turn, every second round in the opposite order."""
    pools = QUICK_POOLS if quick else FULL_POOLS
    sizes = {role: {"pages": pages} for role, pages in zip(pair.ROLES, pools, strict=True)}
    tell(f"goodput: allocating {sum(pools) * BUFFERS * ITEM_BYTES / 2**30:.1f} GiB")
    pair.command("memory", name="pages", buffers=BUFFERS, item_bytes=ITEM_BYTES, by_role=sizes)
    for way in WAYS:
        pair.open(way, way, "pages")
    verify(pair, pools)
    shape = Shape(BUFFERS, pools[0], ITEM_BYTES)
    rows = []
    for cell in QUICK if quick else FULL:
        tell(f"goodput: {cell.pages} pages, {cell.pattern}, {cell.concurrency} in flight")
        rows.append(measure(pair, cell, shape, QUICK_BYTES if quick else FULL_BYTES, rounds))
    for way in WAYS:
        pair.close(way)
    return {"buffers": BUFFERS, "item_bytes": ITEM_BYTES, "pool_pages": pools, "rounds": rounds, "cells": rows}


def verify(pair: Pair, pools: tuple[int, int]) -> None:
    """One room in each way and pattern, every byte compared."""
    for way in WAYS:
        for pattern in ("random", "contiguous"):
            pair.run(way, Work(VERIFIED_PAGES, 1, pattern=pattern))
            wrong = pair.command("verify", name=way, pages=VERIFIED_PAGES, pattern=pattern, pools=pools)["decode"]
            if wrong:
                raise RankFailed(f"{way}: {wrong} of {VERIFIED_PAGES} {pattern} pages are wrong")


def measure(pair: Pair, cell: Cell, shape: Shape, target_bytes: int, rounds: int) -> dict[str, Any]:
    """One cell. ``ratio``: the share of the socket's goodput, each round's pair by itself."""
    rooms = cell.rooms(shape, target_bytes)
    nbytes = rooms * cell.pages * shape.page_bytes
    work = Work(cell.pages, rooms, cell.concurrency, cell.pattern)
    taken: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            taken[way].append(pair.run(way, work))
    rates = {way: [nbytes / one["elapsed_s"] / 1e9 for one in taken[way]] for way in WAYS}
    return {
        "pages": cell.pages, "pattern": cell.pattern, "concurrency": cell.concurrency, "rooms": rooms, "bytes": nbytes,
        "over_socket_us": Spread.of(_differences(taken["core"], taken["socket"], rooms)),
        "room_ms": {way: Spread.of([one["elapsed_s"] / rooms * 1e3 for one in taken[way]]) for way in WAYS},
        "rate": {way: Spread.of(rates[way]) for way in WAYS},
        "ratio": {way: Spread.of(_quotients(rates[way], rates["socket"])) for way in WAYS[1:]},
        "cpu_s_per_gb": {
            way: {
                role: Spread.of([one["cpu_s"][role] / nbytes * 1e9 for one in taken[way]]).median for role in pair.ROLES
            }
            for way in WAYS
        },
        "others_busy": Spread.of([one["others_busy"] for way in WAYS for one in taken[way]]),
    }  # fmt: skip


def _differences(these: Sequence[dict[str, Any]], those: Sequence[dict[str, Any]], rooms: int) -> list[float]:
    """Microseconds per room by which these took longer than those."""
    return [(a["elapsed_s"] - b["elapsed_s"]) / rooms * 1e6 for a, b in zip(these, those, strict=True)]


def _quotients(these: Sequence[float], those: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(these, those, strict=True)]
