"""What the engine's thread is spared: kv-core as it is, against a thread that posts a room and waits for its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.harness.figures import Spread
from benchmarks.harness.goodput import BUFFERS, ITEM_BYTES, quotients
from benchmarks.harness.memory import Shape
from benchmarks.harness.ranks import Pair
from benchmarks.harness.work import Work

IN_FLIGHT = 8
POOL_PAGES = 512
SIZES = (8, 64)
TARGET_BYTES, QUICK_TARGET_BYTES = 2_000_000_000, 1_000_000_000
WAYS = ("core", "sync")


def run(
    pair: Pair, *, quick: bool, rounds: int, options: dict[str, Any], tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Eight rooms in flight, the ways in turn, every second round in the opposite order."""
    pair.command("memory", name="pages", buffers=BUFFERS, item_bytes=ITEM_BYTES, pages=POOL_PAGES)
    for way in WAYS:
        pair.open(way, way, "pages", **options)
        pair.run(way, Work(SIZES[0], IN_FLIGHT, IN_FLIGHT))
    target = QUICK_TARGET_BYTES if quick else TARGET_BYTES
    rows = []
    for pages in SIZES:
        tell(f"sync: {pages} pages, {IN_FLIGHT} in flight")
        rows.append(_measure(pair, pages, target, rounds))
    for way in WAYS:
        pair.close(way)
    return rows


def _measure(pair: Pair, pages: int, target_bytes: int, rounds: int) -> dict[str, Any]:
    room_bytes = pages * Shape(BUFFERS, POOL_PAGES, ITEM_BYTES).page_bytes
    rooms = max(IN_FLIGHT, round(target_bytes / room_bytes))
    taken: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            taken[way].append(pair.run(way, Work(pages, rooms, IN_FLIGHT)))
    held = {way: [one["sides"]["prefill"]["held_s"] / rooms * 1e6 for one in taken[way]] for way in WAYS}
    rates = {way: [rooms * room_bytes / one["elapsed_s"] / 1e9 for one in taken[way]] for way in WAYS}
    return {
        "pages": pages, "in_flight": IN_FLIGHT, "rooms": rooms,
        "held_us": {way: Spread.of(held[way]) for way in WAYS},
        "held_decode_us": Spread.of([one["sides"]["decode"]["held_s"] / rooms * 1e6 for one in taken["core"]]),
        "less_held": Spread.of(quotients(held["sync"], held["core"])),
        "rate": {way: Spread.of(rates[way]) for way in WAYS},
        "ratio": Spread.of(quotients(rates["core"], rates["sync"])),
        "others_busy": Spread.of([one["others_busy"] for way in WAYS for one in taken[way]]),
    }  # fmt: skip
