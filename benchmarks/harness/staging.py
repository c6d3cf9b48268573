"""Many small pieces, or a detour: what slices of heads cost an engine, and what gathering and scattering them would.

The slices that unequal tensor parallel sizes make of a page (a few heads of each token) are small where the order is NHD. The
detour is a staging pool: gather the pieces into it, move it in large copies, scatter at the other side.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.harness.figures import Spread
from benchmarks.harness.memory import HEADS, TOKENS
from benchmarks.harness.ranks import Pair
from benchmarks.harness.work import Work

PIECES = (128, 256, 512, 1_024, 2_048, 4_096, 16_384)
"""Bytes of a slice: 512 are two heads of 128 numbers of two bytes."""
ROOM_BYTES, BUFFERS = 16 << 20, 8
LARGE_BYTES = 1 << 20
"""One copy out of a staging pool."""
REPEATS = 5


def run(
    pair: Pair, *, quick: bool, rounds: int, options: dict[str, Any], tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """For each size the milliseconds of 16 MiB: pieces as they are, and the parts of the detour, all in the same round.

    Pieces lie at random in memory of twice their size. Gathering and scattering are NumPy's, on one thread.
    """
    pair.command("memory", name="large", buffers=1, item_bytes=LARGE_BYTES, pages=2 * ROOM_BYTES // LARGE_BYTES)
    pair.open("large", "transport", "large", **options)
    rows = []
    for piece in PIECES[1::2] if quick else PIECES:
        pages = ROOM_BYTES // BUFFERS // piece
        name = f"pieces of {piece}"
        pair.command("memory", name=name, buffers=BUFFERS, item_bytes=piece, pages=2 * pages)
        pair.open(name, "transport", name, **options)
        direct, wire, gather, scatter = [], [], [], []
        pair.run(name, Work(pages, 1))
        pair.run("large", Work(ROOM_BYTES // LARGE_BYTES, 1))
        for number in range(rounds):
            tell(f"staging, {name} bytes, round {number + 1} of {rounds}")
            direct.append(_room_ms(pair, name, pages))
            wire.append(_room_ms(pair, "large", ROOM_BYTES // LARGE_BYTES))
            one, other = _copies_ms(piece)
            gather.append(one)
            scatter.append(other)
        pair.close(name)
        detour = [sum(parts) for parts in zip(gather, wire, scatter, strict=True)]
        overlapped = [max(parts) for parts in zip(gather, wire, scatter, strict=True)]
        rows.append(
            {"piece": piece, "pieces": ROOM_BYTES // piece}
            | {
                key: Spread.of(values)
                for key, values in (
                    ("direct_ms", direct), ("wire_ms", wire), ("gather_ms", gather), ("scatter_ms", scatter),
                    ("detour_ms", detour), ("ratio", [a / b for a, b in zip(direct, detour, strict=True)]),
                    ("ratio_overlapped", [a / b for a, b in zip(direct, overlapped, strict=True)]),
                )
            }
        )  # fmt: skip
    return rows


def through_core(
    pair: Pair, *, quick: bool, rounds: int, options: dict[str, Any], tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """For each size the milliseconds of a room of 16 MiB through kv-core, NHD here and HND there, so that a piece is a head of a
    token and a run a head's tokens: pieces as they are, and by way of the staging area.
    """
    rows = []
    for piece in PIECES[1:-1:2] if quick else PIECES[:-1]:
        item_bytes = piece * TOKENS * HEADS
        pages = ROOM_BYTES // BUFFERS // item_bytes
        memory = f"heads of {piece}"
        pair.command(
            "memory", name=memory, buffers=BUFFERS, item_bytes=item_bytes, pages=2 * pages,
            by_role={"prefill": {"order": "NHD"}, "decode": {"order": "HND"}},
        )  # fmt: skip
        taken: dict[str, list[float]] = {"as they are": [], "staged": []}
        for way in taken:
            more = {"staging_bytes": 0} if way == "as they are" else {}
            pair.open(way, "core", memory, **options, **more)
            wrong = pair.run(way, Work(pages, 1)) and pair.command(
                "verify", name=way, pages=pages, pattern="random", pools=[2 * pages, 2 * pages]
            )
            if wrong["decode"]:
                raise RuntimeError(f"{wrong['decode']} of {pages} pages arrived wrong, {way}")
        staged = pair["prefill"].call("staged", name="staged")
        for number in range(rounds):
            tell(f"staging, rooms with heads of {piece} bytes, round {number + 1} of {rounds}")
            for way, values in taken.items():
                values.append(_room_ms(pair, way, pages))
        for way in taken:
            pair.close(way)
        ratio = [a / b for a, b in zip(taken["as they are"], taken["staged"], strict=True)]
        rows.append(
            {
                "piece": piece, "run": piece * TOKENS, "staged": bool(staged), "as_is_ms": Spread.of(taken["as they are"]),
                "staged_ms": Spread.of(taken["staged"]), "ratio": Spread.of(ratio),
            }
        )  # fmt: skip
    return rows


def _room_ms(pair: Pair, name: str, pages: int) -> float:
    rooms = 4
    return float(pair.run(name, Work(pages, rooms))["elapsed_s"]) / rooms * 1e3


def _copies_ms(piece: int) -> tuple[float, float]:
    """Gather and scatter of a room's pieces."""
    count = ROOM_BYTES // piece
    pool = np.ones((2 * count, piece), np.uint8)
    staging = np.zeros((count, piece), np.uint8)
    at = np.random.default_rng(piece).permutation(2 * count)[:count]

    def gather() -> None:
        np.take(pool, at, axis=0, out=staging, mode="clip")

    def scatter() -> None:
        pool[at] = staging

    taken = []
    for call in (gather, scatter):
        call()
        times = []
        for _ in range(REPEATS):
            begin = perf_counter()
            call()
            times.append(perf_counter() - begin)
        taken.append(median(times) * 1e3)
    return taken[0], taken[1]
