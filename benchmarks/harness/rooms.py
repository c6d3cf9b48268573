"""What a room costs besides its bytes: the engine thread's time in each call, and the control plane's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.harness.figures import Spread
from benchmarks.harness.ranks import Pair
from benchmarks.harness.ways import yardstick
from benchmarks.harness.work import Work

SMALL: dict[str, Any] = {"buffers": 64, "pages": 2_048, "item_bytes": 64}
"""A pool of tiny pages: what is measured is the room, not its bytes."""
QUEUEING: dict[str, Any] = {"buffers": 64, "pages": 256, "item_bytes": 32_768}
"""A room of one page has 2 MiB: the engine's thread goes round faster than these are moved."""
ENGINE_PASS_S = 0.001
KEEN_PASS_S = 0.000_2
"""Where the time until a room has ended is what counts, the engine looks as often as this."""
HOLD_S = 0.05
MANY = 1_000


def calls(
    pair: Pair, backend: str, *, quick: bool, options: dict[str, Any], tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Microseconds of each call on the engine's thread, with 1 and with 1,000 rooms in flight, one page each.

    With 1,000 in flight something has to keep them there. Where the transport has a fault script, it holds back each
    transfer's bytes for 50 ms; elsewhere the pages have 32 KiB, so that rooms queue up behind the engine.
    """
    scripted = yardstick(backend) == "socket"
    pair.command("memory", name="small", **(SMALL if scripted else QUEUEING))
    rows = []
    plans = [(1, 200 if quick else 1_000, {}), (MANY, 1_500 if quick else 4_000, held() if scripted else {})]
    for concurrency, rooms, more in plans:
        tell(f"calls: {concurrency} in flight")
        pair.open("calls", "core", "small", **options, **more)
        pair.run("calls", Work(1, concurrency, concurrency, idle_s=ENGINE_PASS_S, patient=True))
        result = pair.run("calls", Work(1, rooms, concurrency, idle_s=ENGINE_PASS_S, patient=True))
        pair.close("calls")
        rows.append(
            {
                "concurrency": concurrency, "rooms": rooms, "others_busy": result["others_busy"],
                "room_bytes": (SMALL if scripted else QUEUEING)["item_bytes"] * SMALL["buffers"],
                "sides": {
                    role: {"calls": side["calls"], "in_flight": side["fullest"]}
                    for role, side in result["sides"].items()
                },
            }
        )  # fmt: skip
    return rows


def held() -> dict[str, Any]:
    """Options under which the prefill side's transport sends each transfer's bytes 50 ms late."""
    fault = {"kind": "delay", "every": 1, "seconds": HOLD_S}
    return {"options": {"prefill": {"faults": [fault]}, "decode": {}}}


def control(
    pair: Pair, *, quick: bool, rounds: int, options: dict[str, Any], tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rooms through the whole protocol as fast as they go: without pages, and with one tiny page."""
    pair.command("memory", name="small", **SMALL)
    pair.open("control", "core", "small", **options)
    pair.run("control", Work(1, 64, 32, idle_s=KEEN_PASS_S))
    rows = []
    for pages in (0, 1):
        for concurrency in (1, 32):
            tell(f"control plane: {pages} pages, {concurrency} in flight")
            rooms = (100 if quick else 400) if concurrency == 1 else (400 if quick else 1_600)
            work = Work(pages, rooms, concurrency, idle_s=KEEN_PASS_S)
            taken = [pair.run("control", work) for _ in range(rounds)]
            rows.append(_row(pair, pages, concurrency, rooms, taken))
    pair.close("control")
    return rows


def _row(pair: Pair, pages: int, concurrency: int, rooms: int, taken: list[dict[str, Any]]) -> dict[str, Any]:
    frames = [sum(side["frames_out"] for side in one["sides"].values()) / rooms for one in taken]
    return {
        "pages": pages, "concurrency": concurrency, "rooms": rooms,
        "rooms_per_s": Spread.of([rooms / one["elapsed_s"] for one in taken]),
        "us_per_room": Spread.of([one["elapsed_s"] / rooms * 1e6 for one in taken]),
        "cpu_us_per_room": {
            role: Spread.of([one["cpu_s"][role] / rooms * 1e6 for one in taken]) for role in pair.ROLES
        },
        "packets_per_room": Spread.of(frames),
        "others_busy": Spread.of([one["others_busy"] for one in taken]),
    }  # fmt: skip
