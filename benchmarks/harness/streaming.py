"""Layer-wise streaming: a prefill that computes layer by layer, and sends each layer when it is done or all at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.harness.figures import Spread
from benchmarks.harness.goodput import BUFFERS, ITEM_BYTES
from benchmarks.harness.ranks import Pair
from benchmarks.harness.rooms import KEEN_PASS_S
from benchmarks.harness.work import Work

PAGES = 128
LAYERS = BUFFERS // 2
"""Keys and values of a layer are a buffer each."""
SCALES = (1.0, 1.5)
"""What a layer's computation takes, in transfers of a layer."""


def run(
    pair: Pair, *, quick: bool, rounds: int, options: dict[str, Any], tell: Callable[[str], None]
) -> dict[str, Any]:
    """How long from the end of the computation to Success: sent at once, and sent layer by layer.

    First the same bytes are moved without a computation, as a whole and layer by layer; the latter says how long one layer takes
    on the fabric. The computation of a layer then takes as long, times ``SCALES``. The engine's thread sleeps meanwhile, as with
    a GPU.
    """
    pair.command("memory", name="pages", buffers=BUFFERS, item_bytes=ITEM_BYTES, pages=2 * PAGES)
    pair.open("streaming", "core", "pages", **options)
    rooms = 5 if quick else 15
    work = Work(PAGES, rooms, patient=True, stamps=True, idle_s=KEEN_PASS_S)
    pair.run("streaming", replace(work, rooms=3))
    rows: dict[tuple[str, float], list[dict[str, float]]] = {}
    whole_ms, layered_ms = [], []
    for number in range(rounds):
        tell(f"streaming, round {number + 1} of {rounds}")
        whole = _tail_ms(pair.run("streaming", work))
        layered = _tail_ms(pair.run("streaming", replace(work, layers=LAYERS, streamed=True)))
        whole_ms.append(whole)
        layered_ms.append(layered)
        for scale in SCALES:
            computing = replace(work, layers=LAYERS, layer_s=scale * layered / LAYERS / 1e3)
            for name in ("at the end", "layer by layer"):
                result = pair.run("streaming", replace(computing, streamed=name != "at the end"))
                tail = _tail_ms(result)
                rows.setdefault((name, scale), []).append(
                    {"tail_ms": tail, "part": tail / whole, "others_busy": result["others_busy"]}
                )
    pair.close("streaming")
    return {
        "bytes": PAGES * BUFFERS * ITEM_BYTES, "layers": LAYERS, "rooms": rooms, "whole_ms": Spread.of(whole_ms),
        "layered_ms": Spread.of(layered_ms),
        "cases": [
            {"sent": name, "compute": scale}
            | {key: Spread.of([one[key] for one in each]) for key in ("tail_ms", "part", "others_busy")}
            for (name, scale), each in rows.items()
        ],
    }  # fmt: skip


def _tail_ms(result: dict[str, Any]) -> float:
    """Median from the end of the computation on prefill's side to Success on decode's."""
    computed, seen = (result["sides"][role]["stamps"] for role in Pair.ROLES)
    return float(np.median([seen[room] - computed[room] for room in computed])) * 1e3
