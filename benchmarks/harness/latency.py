"""How long a room of 8 MiB takes from ``send()`` to Success, with an engine thread that waits and with one that computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.harness.goodput import BUFFERS, ITEM_BYTES
from benchmarks.harness.ranks import Pair
from benchmarks.harness.rooms import KEEN_PASS_S
from benchmarks.harness.ways import yardstick
from benchmarks.harness.work import Work

PAGES = 4
POOL_PAGES = 64
SHORT_S = 0.000_5
"""The switch interval that TransferConfig recommends for busy engines; Python's own is 0.005."""


def run(
    pair: Pair, backend: str, *, quick: bool, options: dict[str, Any], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Each case in its own pair of managers, one room at a time; and one at a time through the yardstick."""
    pair.command("memory", name="pages", buffers=BUFFERS, item_bytes=ITEM_BYTES, pages=POOL_PAGES)
    rooms = 40 if quick else 150
    rows = []
    for busy in (False, True):
        for interval in (None, SHORT_S):
            tell(f"latency: engine thread {'busy' if busy else 'idle'}, switch interval {interval or 'default'}")
            pair.open("latency", "core", "pages", switch_interval_s=interval, **options)
            pair.run("latency", Work(PAGES, 3, patient=True, busy=busy))
            work = Work(PAGES, rooms, patient=True, busy=busy, stamps=True, idle_s=KEEN_PASS_S)
            result = pair.run("latency", work)
            pair.close("latency")
            rows.append(
                {"busy": busy, "switch_interval_s": interval, "rooms": rooms, "others_busy": result["others_busy"]}
                | _milliseconds(result)
            )
    base = yardstick(backend)
    pair.open("plain", base, "pages")
    pair.run("plain", Work(PAGES, 3))
    plain = pair.run("plain", Work(PAGES, rooms))
    pair.close("plain")
    nbytes = PAGES * BUFFERS * ITEM_BYTES
    return {
        "bytes": nbytes, "cases": rows, "yardstick": base, "yardstick_ms": round(plain["elapsed_s"] / rooms * 1e3, 3),
    }  # fmt: skip


def _milliseconds(result: dict[str, Any]) -> dict[str, float]:
    sent, seen = (result["sides"][role]["stamps"] for role in Pair.ROLES)
    taken = np.array([seen[room] - sent[room] for room in sent]) * 1e3
    return {
        name: round(float(np.percentile(taken, share)), 2) for name, share in (("p50", 50), ("p90", 90), ("p99", 99))
    }
