"""Pairs of topologies: each axis exhaustively, and their product by seeded pairwise sampling."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise, product

import numpy as np

from core.tests.layout.topologies.model import Case, Side

TP, PP, CP, DP, HEADS, PAGES = (range(1, most + 1) for most in (16, 8, 8, 4, 64, 64))
ORDERS = ("NHD", "HND")
Rng = np.random.Generator


def shared(total: int, size: int) -> bool:
    """Whether ``total`` units can be shared by ``size`` ranks."""
    return total % size == 0 or size % total == 0


def cut(layers: int, stages: int, rng: Rng | None = None) -> tuple[range, ...]:
    """Stages of consecutive layers, at least one each: even, or cut at random."""
    if rng is None:
        bounds = [stage * layers // stages for stage in range(stages + 1)]
    else:
        inner = sorted(rng.choice(np.arange(1, layers), stages - 1, replace=False).tolist()) if stages > 1 else []
        bounds = [0, *inner, layers]
    return tuple(range(first, stop) for first, stop in pairwise(bounds))


def tensor_pairs() -> Iterator[tuple[int, int, int]]:
    """(prefill's, decode's, heads): all of them, those that must be refused as well."""
    yield from product(TP, TP, HEADS)


def tensor_case(prefill: int, decode: int, heads: int, seed: int, *, mla: bool = False) -> Case:
    rng = np.random.default_rng(seed)
    order = [ORDERS[int(rng.integers(2))] for _ in range(2)]
    fused = [bool(rng.integers(2)) for _ in range(2)]
    sides = [
        Side(tp=size, dp=int(rng.integers(1, 5)), order=order[n], fused=fused[n] and not mla)
        for n, size in enumerate((prefill, decode))
    ]
    return Case(sides[0], sides[1], heads, mla, seed=seed, state=bool(seed % 2))


def pipeline_cases(seed: int) -> Iterator[Case]:
    """All pairs of sizes, evenly cut and not, one and two ranks of tensor parallelism."""
    for at, (prefill, decode, even) in enumerate(product(PP, PP, (True, False))):
        rng = np.random.default_rng((seed, at))
        layers = int(rng.integers(max(prefill, decode), 12))
        stages = tuple(cut(layers, size, None if even else rng) for size in (prefill, decode))
        sides = (
            Side(tp=int(rng.integers(1, 3)), pp=prefill),
            Side(tp=int(rng.integers(1, 3)), pp=decode, fused=not even),
        )
        yield Case(*sides, heads=2, stages=(stages[0], stages[1]), seed=seed + at)


def context_cases(seed: int) -> Iterator[Case]:
    """All pairs of sizes, with equal and unequal pages, and a prompt that does not fill the last one."""
    for at, (prefill, decode, pages) in enumerate(product(CP, CP, ((2, 2), (1, 4), (6, 2)))):
        rng = np.random.default_rng((seed, at))
        order = [ORDERS[int(rng.integers(2))] for _ in range(2)]
        sides = [Side(cp=size, page=pages[n], order=order[n]) for n, size in enumerate((prefill, decode))]
        tokens = int(rng.integers(0, 40)) * min(pages)
        yield Case(sides[0], sides[1], 2, tokens=tokens, prefix=int(rng.integers(0, 3)), seed=seed + at)


def data_cases(seed: int) -> Iterator[Case]:
    """All pairs of sizes, where more ranks hold a head than receive it."""
    for at, (prefill, decode) in enumerate(product(DP, DP)):
        yield Case(Side(tp=8, dp=prefill), Side(tp=1, dp=decode), mla=True, seed=seed + at)


def page_cases(seed: int) -> Iterator[Case]:
    """All pairs of page sizes of which one divides the other, in both orders, K and V in one buffer or two."""
    for at, (prefill, decode) in enumerate(product(PAGES, PAGES)):
        if max(prefill, decode) % min(prefill, decode):
            continue
        rng = np.random.default_rng((seed, at))
        orders = list(product(ORDERS, ORDERS))
        for first, second in orders:
            fused = [bool(rng.integers(2)) for _ in range(2)]
            sides = (
                Side(tp=int(rng.integers(1, 3)), page=prefill, order=first, fused=fused[0]),
                Side(tp=int(rng.integers(1, 3)), page=decode, order=second, fused=fused[1]),
            )
            tokens = int(rng.integers(1, 2 + 2 * max(prefill, decode) // min(prefill, decode))) * min(prefill, decode)
            yield Case(*sides, heads=2, tokens=tokens, prefix=int(rng.integers(0, 2)), seed=seed + at, state=False)


AXES: dict[str, tuple[object, ...]] = {
    "prefill tp": tuple(TP), "decode tp": tuple(TP), "prefill pp": tuple(PP), "decode pp": tuple(PP),
    "prefill cp": tuple(CP), "decode cp": tuple(CP), "prefill dp": tuple(DP), "decode dp": tuple(DP),
    "heads": (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 30, 32, 40, 48, 60, 64), "mla": (False, True),
    "prefill page": (1, 2, 3, 4, 8, 16, 32, 48, 64), "decode page": (1, 2, 3, 4, 8, 16, 32, 48, 64),
    "prefill order": ORDERS, "decode order": ORDERS, "prefill fused": (False, True), "decode fused": (False, True),
}  # fmt: skip


def fits(value: dict[str, object]) -> bool:
    """Whether the planner serves this combination."""
    total = 1 if value["mla"] else int(value["heads"])  # type: ignore[call-overload]
    pages = sorted((int(value["prefill page"]), int(value["decode page"])))  # type: ignore[call-overload]
    return shared(total, value["prefill tp"]) and shared(total, value["decode tp"]) and pages[1] % pages[0] == 0  # type: ignore[arg-type]


def product_cases(seed: int, most: int) -> Iterator[tuple[Case, int, int]]:
    """Cases until each pair of values of two axes has been in one, or ``most``; with the pairs still open and the pairs
    that no case can have.
    """
    rng = np.random.default_rng(seed)
    names = list(AXES)
    values = {(one, other): set(product(AXES[one], AXES[other])) for one, other in combinations(names, 2)}
    left = {(one, a, other, b) for (one, other), pairs in values.items() for a, b in pairs}
    order = sorted(left, key=repr)
    rng.shuffle(order)
    impossible = made = 0
    for wanted in order:
        if tuple(wanted) not in left or made >= most:
            continue
        left.discard(tuple(wanted))
        one, a, other, b = wanted
        found = _complete({one: a, other: b}, rng)
        if found is None:
            impossible += 1
            continue
        left -= {(x, found[x], y, found[y]) for x, y in combinations(names, 2)}
        made += 1
        yield _case(found, int(rng.integers(1 << 30)), rng), len(left), impossible


def _complete(fixed: dict[str, object], rng: Rng) -> dict[str, object] | None:
    for _ in range(400):
        value = {name: fixed.get(name, options[int(rng.integers(len(options)))]) for name, options in AXES.items()}
        if fits(value):
            return value
    return None


def _case(value: dict[str, object], seed: int, rng: Rng) -> Case:
    sides = []
    for name in ("prefill", "decode"):
        axes = {axis: value[f"{name} {axis}"] for axis in ("tp", "pp", "cp", "dp", "page", "order")}
        sides.append(Side(**axes, fused=bool(value[f"{name} fused"]) and not value["mla"]))  # type: ignore[arg-type]
    layers = max(sides[0].pp, sides[1].pp) + int(rng.integers(0, 2))
    small = min(side.page for side in sides)
    tokens = int(rng.integers(1, 1 + max(2, 160 // small))) * small
    stages = tuple(cut(layers, side.pp, rng if rng.integers(2) else None) for side in sides)
    return Case(
        sides[0], sides[1], int(value["heads"]), bool(value["mla"]), (stages[0], stages[1]), tokens,  # type: ignore[call-overload]
        int(rng.integers(0, 2)), seed,
    )  # fmt: skip
