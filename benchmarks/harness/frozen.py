"""One decode process's rooms while others, stopped by SIGSTOP in the middle of a room, take nothing.

Every frozen process has a room of its own in flight whose bytes it does not take; liveness is set so that it stays merely
frozen. Measured in turn, in the same processes: with none stopped, with all of them stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.harness.figures import Spread
from benchmarks.harness.goodput import BUFFERS, ITEM_BYTES, quotients
from benchmarks.harness.ranks import Pair, RankProcess
from benchmarks.harness.rooms import KEEN_PASS_S
from benchmarks.harness.work import Work

WAY, MEMORY = "frozen", "pages"
COUNTS, QUICK_COUNTS = (2, 16), (2,)
POOL_PAGES, HELD_PAGES = 64, 16
"""A frozen process's room has 32 MiB: more than the buffers of a connection take."""
LATENCY_PAGES, LATENCY_ROOMS, QUICK_LATENCY_ROOMS = 4, 60, 30
GOODPUT_PAGES, GOODPUT_ROOMS, QUICK_GOODPUT_ROOMS, IN_FLIGHT = 8, 64, 32, 4
LONG_S = 3_600.0
PATIENT: dict[str, Any] = {
    "bootstrap_timeout_s": LONG_S, "waiting_timeout_s": LONG_S, "transferring_timeout_s": LONG_S,
    "draining_timeout_s": LONG_S, "lease_s": LONG_S, "suspect_after": 2, "dead_after": 3_600, "close_timeout_s": 20.0,
}  # fmt: skip
ENVIRONMENT = {
    "MC_TCP_PROGRESS_TIMEOUT_SEC": "600", "MC_TCP_STATUS_TIMEOUT_SEC": "600", "MC_TRANSFER_TIMEOUT": "600",
}  # fmt: skip
"""Mooncake's own limits are of 30 s: long enough for kv-core to stay below, and for nothing to end here."""


@dataclass
class Taken:
    """What was measured in one of the two cases, round by round."""

    latencies_ms: list[float] = field(default_factory=list)
    medians_ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    others_busy: list[float] = field(default_factory=list)


def run(
    backend: str, environment: dict[str, str], *, quick: bool, rounds: int, options: dict[str, Any],
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each number of frozen processes."""
    rows = []
    for count in QUICK_COUNTS if quick else COUNTS:
        tell(f"frozen: starting {count} processes to be frozen")
        with Pair(backend, environment | ENVIRONMENT) as pair, _others(count, backend, environment) as others:
            sizes: dict[str, Any] = {"buffers": BUFFERS, "item_bytes": ITEM_BYTES}
            pair.command("memory", name=MEMORY, pages=POOL_PAGES, **sizes)
            told = pair.open(WAY, "core", MEMORY, **PATIENT, **options)["prefill"]
            for process in others:
                process.call("memory", name=MEMORY, pages=HELD_PAGES, **sizes)
                process.call("open", name=WAY, kind="core", memory=MEMORY, options=PATIENT | options)
                process.call("connect", name=WAY, told=told)
            rows.append(_measure(pair, others, quick, rounds, tell))
            for process in others:
                process.ask("quit")
            for process in others:
                process.answer()
            pair.command("quit")
    return rows


@contextmanager
def _others(count: int, backend: str, environment: dict[str, str]) -> Iterator[list[RankProcess]]:
    """Decode processes besides the pair's; they end with this, frozen or not."""
    processes: list[RankProcess] = []
    good = False
    try:
        processes.extend(RankProcess("decode", backend, environment | ENVIRONMENT) for _ in range(count))
        yield processes
        good = True
    finally:
        for process in processes:
            process.end(kill=not good)


def _measure(
    pair: Pair, others: list[RankProcess], quick: bool, rounds: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    cases = {"without": Taken(), "with": Taken()}
    stuck = []
    _open(pair, others)  # so that every session is there before the first round
    pair["prefill"].call("held", name=WAY, what="send")
    good = _finish(pair, others)
    for number in range(rounds):
        tell(f"frozen: {len(others)} processes, round {number + 1}")
        _take(pair, others, cases["without"], quick)
        _open(pair, others)
        for process in others:
            process.freeze()
        pair["prefill"].call("held", name=WAY, what="send")
        _take(pair, others, cases["with"], quick)
        stuck.append(pair["prefill"].call("held", name=WAY, what="live"))
        for process in others:
            process.thaw()
        good += _finish(pair, others)
    return {
        "frozen": len(others), "rounds": rounds, "in_flight": min(stuck),
        "ended_well": good, "rooms_of_frozen": (rounds + 1) * len(others),
        "latency_ms": {name: _percentiles(case.latencies_ms) for name, case in cases.items()},
        "latency_ratio": Spread.of(quotients(cases["with"].medians_ms, cases["without"].medians_ms)),
        "rate": {name: Spread.of(case.rates) for name, case in cases.items()},
        "ratio": Spread.of(quotients(cases["with"].rates, cases["without"].rates)),
        "others_busy": Spread.of([one for case in cases.values() for one in case.others_busy]),
    }  # fmt: skip


def _open(pair: Pair, others: list[RankProcess]) -> None:
    """A room for each of the others, up to where the prefill side may send."""
    first = pair.rooms(len(others))
    for number, process in enumerate(others):
        process.call("held", name=WAY, what="open", rooms=[first + number], pages=HELD_PAGES)
    rooms = [first + number for number in range(len(others))]
    pair["prefill"].call("held", name=WAY, what="open", rooms=rooms, pages=HELD_PAGES)
    pair["prefill"].call("held", name=WAY, what="ready")


def _finish(pair: Pair, others: list[RankProcess]) -> int:
    """The end of those rooms: how many went well on both sides."""
    sent: int = pair["prefill"].call("held", name=WAY, what="finish")
    taken = [int(process.call("held", name=WAY, what="finish")) for process in others]
    return min(sent, sum(taken))


def _take(pair: Pair, others: list[RankProcess], case: Taken, quick: bool) -> None:
    """The pair's own rooms: one at a time for the latency, some in flight for the goodput."""
    pair.run(WAY, Work(LATENCY_PAGES, 3, patient=True))
    rooms = QUICK_LATENCY_ROOMS if quick else LATENCY_ROOMS
    result = pair.run(WAY, Work(LATENCY_PAGES, rooms, patient=True, stamps=True, idle_s=KEEN_PASS_S), others)
    sent, seen = (result["sides"][role]["stamps"] for role in pair.ROLES)
    taken = [(seen[room] - sent[room]) * 1e3 for room in sent]
    case.latencies_ms += taken
    case.medians_ms.append(float(np.median(taken)))
    case.others_busy.append(result["others_busy"])
    rooms = QUICK_GOODPUT_ROOMS if quick else GOODPUT_ROOMS
    result = pair.run(WAY, Work(GOODPUT_PAGES, rooms, IN_FLIGHT), others)
    case.rates.append(rooms * GOODPUT_PAGES * BUFFERS * ITEM_BYTES / result["elapsed_s"] / 1e9)
    case.others_busy.append(result["others_busy"])


def _percentiles(milliseconds: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(milliseconds, (50, 99))
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "count": len(milliseconds)}
