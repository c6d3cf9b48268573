"""Pairs of shapes that must be served: each axis by itself, and products. At most eight ranks of both sides together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from core.tests.layout.topologies.model import Case, Side


@dataclass(frozen=True)
class Pair:
    """A pair of shapes with a model. ``dp_rank``: prefill's data-parallel rank that computes the prompt."""

    axis: str
    name: str
    case: Case
    dp_rank: int = 0

    @property
    def counts(self) -> tuple[int, int]:
        """Processes of prefill and of decode, of which one data-parallel rank is there."""
        tp, pp, cp, _ = self.case.destination.sizes
        source = self.case.source
        return source.tp * source.pp * source.cp * source.dp, tp * pp * cp

    @property
    def ranks(self) -> str:
        """For a table."""
        return "+".join(map(str, self.counts))


def stages(*bounds: int) -> tuple[range, ...]:
    """Consecutive layers, cut at these."""
    return tuple(range(first, stop) for first, stop in pairwise([0, *bounds]))


def pair(
    axis: str, name: str, source: dict[str, Any], destination: dict[str, Any], dp_rank: int = 0,
    cuts: tuple[tuple[int, ...], tuple[int, ...]] = ((3,), (3,)), **more: Any,
) -> Pair:  # fmt: skip
    """``cuts``: of both sides' stages; for MLA one head is held by all."""
    values: dict[str, Any] = {"tokens": 12, **more}
    if values.get("mla"):
        values["heads"] = 1
    case = Case(Side(**source), Side(**destination), stages=(stages(*cuts[0]), stages(*cuts[1])), **values)
    return Pair(axis, name, case, dp_rank)


def tp(prefill: int, decode: int, order: tuple[str, str] = ("NHD", "NHD"), note: str = "", **more: Any) -> Pair:
    """Tensor parallel sizes; page orders."""
    heads = more.get("heads", 4)
    told = "MLA" if more.get("mla") else f"{heads} heads"
    orders = "" if order == ("NHD", "NHD") else f", {order[0]} to {order[1]}"
    name = f"tp {prefill} to {decode}, {told}{orders}{note}"
    return pair("tp", name, {"tp": prefill, "order": order[0]}, {"tp": decode, "order": order[1]}, **more)


def pp(prefill: tuple[int, ...], decode: tuple[int, ...], note: str = "", **more: Any) -> Pair:
    """Stages, by the layers behind which they end."""
    name = f"pp {len(prefill)} to {len(decode)}, stages end at {list(prefill)} and {list(decode)}{note}"
    return pair("pp", name, {"pp": len(prefill)}, {"pp": len(decode)}, cuts=(prefill, decode), **more)


def cp(prefill: int, decode: int, note: str = "", **more: Any) -> Pair:
    """Context parallel sizes."""
    return pair("cp", f"cp {prefill} to {decode}{note}", {"cp": prefill}, {"cp": decode}, **{"tokens": 14, **more})


def dp(prefill: int, decode: int, dp_rank: int, tp_sizes: tuple[int, int], **more: Any) -> Pair:
    """Data parallel sizes, and which of prefill's ranks computes the prompt."""
    name = f"dp {prefill} to {decode}, prefill_dp_rank {dp_rank}, tp {tp_sizes[0]} to {tp_sizes[1]}"
    sides = ({"dp": prefill, "tp": tp_sizes[0]}, {"dp": decode, "tp": tp_sizes[1]})
    return pair("dp", name, *sides, dp_rank=dp_rank, **more)


def pages(
    prefill: int, decode: int, orders: tuple[str, str] = ("NHD", "NHD"), fused: tuple[bool, bool] = (False, False),
    note: str = "", **more: Any,
) -> Pair:  # fmt: skip
    """Page sizes, page orders, K and V in one buffer or two."""
    sides: list[dict[str, Any]] = [
        {"page": size, "order": order, "fused": one}
        for size, order, one in zip((prefill, decode), orders, fused, strict=True)
    ]
    told = [f"{side['page']} {side['order']}{' fused' if side['fused'] else ''}" for side in sides]
    return pair("pages", f"pages of {told[0]} to {told[1]}{note}", sides[0], sides[1], **more)


NHD, HND = "NHD", "HND"

TP = (
    tp(1, 1),
    tp(2, 1),
    tp(4, 2),
    tp(4, 1, (HND, HND)),
    tp(1, 2),
    tp(2, 4, (HND, HND)),
    tp(1, 4),
    tp(3, 1, heads=3),
    tp(1, 3, heads=6),
    tp(4, 1, heads=2),
    tp(4, 2, heads=1),
    tp(2, 4, heads=2),
    tp(4, 4, heads=2),
    tp(6, 2, heads=2),
    tp(1, 6, heads=2),
    tp(4, 2, heads=1, cuts=((1,), (1,)), note=", one layer"),
    tp(4, 1, mla=True),
    tp(1, 4, mla=True),
    tp(2, 2, mla=True),
    tp(4, 2, mla=True),
    tp(7, 1, mla=True),
    tp(3, 2, mla=True),
)
PP = (
    pp((2, 4), (4,)),
    pp((4,), (1, 4)),
    pp((2, 4), (2, 4)),
    pp((1, 3, 5), (3, 5)),
    pp((2, 4), (1, 3, 4)),
    pp((1, 2, 3, 4), (4,)),
    pp((4,), (1, 2, 3, 4)),
    pp((2, 5), (5,), ", the last one a draft"),
    pp((5,), (2, 5), ", the last one a draft"),
    pp((2, 5), (4,), ", no draft layer in decode"),
    pp((2, 4), (2, 4), ", prefix", prefix=2),
)
CP = (
    cp(2, 1),
    cp(1, 2),
    cp(2, 2),
    cp(3, 2),
    cp(4, 1),
    cp(2, 4),
    cp(2, 1, ", prefix", prefix=3),
    cp(1, 3, ", fewer pages than ranks", tokens=4),
    cp(4, 2, ", fewer pages than ranks, prefix", tokens=6, prefix=1),
    cp(2, 2, ", all in decode already", tokens=8, prefix=4),
)
DP = (
    dp(2, 1, 1, (1, 1)),
    dp(1, 3, 0, (1, 2)),
    dp(2, 2, 0, (2, 1)),
    dp(3, 2, 2, (2, 1), mla=True),
    dp(2, 3, 1, (2, 4)),
)
PAGES = (
    pages(2, 4),
    pages(4, 2),
    pages(2, 4, (HND, HND)),
    pages(4, 2, (HND, HND)),
    pages(1, 8, tokens=11),
    pages(8, 1, tokens=11),
    pages(6, 2, (HND, HND), tokens=10),
    pages(2, 6, (NHD, HND), tokens=10),
    pages(4, 1, (HND, NHD), tokens=9),
    pages(2, 2, (NHD, HND)),
    pages(2, 2, (HND, NHD)),
    pages(2, 2, fused=(True, False)),
    pages(2, 2, fused=(False, True)),
    pages(2, 4, (HND, HND), (True, False), tokens=14),
    pages(4, 2, (NHD, HND), (False, True), tokens=10),
    pages(4, 2, note=", prefix inside a page of prefill", prefix=3, tokens=14),
    pages(2, 4, note=", prefix", prefix=2, tokens=14),
    pages(2, 2, note=", all in decode already", prefix=6),
)
PRODUCTS = (
    pair("product", "tp 2, pp 2 to tp 1", {"tp": 2, "pp": 2}, {}, cuts=((2, 4), (4,)), prefix=1),
    pair("product", "tp 1 to tp 2, pp 2, HND to NHD", {"order": HND}, {"tp": 2, "pp": 2}, cuts=((4,), (1, 4))),
    pair("product", "tp 2, cp 2 to tp 4", {"tp": 2, "cp": 2}, {"tp": 4}, tokens=14),
    pair("product", "tp 2, pp 2 MLA to tp 1, pp 2", {"tp": 2, "pp": 2}, {"pp": 2}, cuts=((2, 4), (2, 4)), mla=True),
    pair(
        "product",
        "pp 2, cp 2 to tp 2, pages of 2 HND to 4 NHD",
        {"pp": 2, "cp": 2, "order": HND},
        {"tp": 2, "page": 4},
        cuts=((2, 5), (5,)),
        tokens=22,
        prefix=1,
    ),
    pair("product", "cp 2 to cp 3, pages of 4 to 2", {"cp": 2, "page": 4}, {"cp": 3}, tokens=22, prefix=1),
    pair(
        "product",
        "tp 2, cp 2 to cp 2, pages of 1 to 3, fused",
        {"tp": 2, "cp": 2, "page": 1},
        {"cp": 2, "page": 3, "fused": True},
        tokens=16,
        prefix=1,
    ),
    pair("product", "tp 2, dp 2 to tp 4, 2 heads", {"tp": 2, "dp": 2}, {"tp": 4, "dp": 2}, dp_rank=1, heads=2),
    pair("product", "tp 4 to pp 3, 2 heads, a draft", {"tp": 4}, {"pp": 3}, cuts=((5,), (1, 3, 5)), heads=2),
    pair(
        "product",
        "pp 3 to pp 2, cp 2, pages of 4 to 2",
        {"pp": 3, "page": 4},
        {"pp": 2, "cp": 2},
        cuts=((1, 3, 4), (2, 4)),
        tokens=18,
        prefix=3,
    ),
    pair(
        "product",
        "tp 2, pp 2 to tp 2, cp 2, MLA, pages of 2 to 8",
        {"tp": 2, "pp": 2},
        {"tp": 2, "cp": 2, "page": 8},
        cuts=((1, 2), (2,)),
        mla=True,
        tokens=26,
    ),
    pair(
        "product",
        "pp 2, dp 2 to pp 2, HND to NHD fused",
        {"pp": 2, "dp": 2, "order": HND},
        {"pp": 2, "fused": True},
        dp_rank=1,
        cuts=((2, 4), (2, 4)),
        prefix=2,
    ),
    pair(
        "product",
        "tp 4 to tp 2, pp 2, MLA with no state",
        {"tp": 4},
        {"tp": 2, "pp": 2},
        cuts=((4,), (2, 4)),
        mla=True,
        state=False,
    ),
)

PAIRS = (*TP, *PP, *CP, *DP, *PAGES, *PRODUCTS)


def chosen(only: str) -> Iterator[Pair]:
    """Those whose name contains this text."""
    return (one for one in PAIRS if only in one.name)
