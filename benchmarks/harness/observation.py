"""What observing costs the engine's thread: the same rooms with everything off, and with one thing on after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.harness.figures import Spread
from benchmarks.harness.goodput import quotients
from benchmarks.harness.observing import MODES, OFF
from benchmarks.harness.ranks import Pair
from benchmarks.harness.rooms import ENGINE_PASS_S, SMALL
from benchmarks.harness.work import Work

IN_FLIGHT = 16
ROOMS, QUICK_ROOMS = 2_000, 600
ROUNDS_MORE = 2
"""The differences are small: this many times as many rounds as elsewhere."""


def run(
    pair: Pair, *, quick: bool, rounds: int, options: dict[str, Any], tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rooms of one tiny page, the modes in turn, every second round in the opposite order."""
    pair.command("memory", name="observed", **SMALL)
    for mode in MODES:
        pair.open(mode, "core", "observed", observe=mode, **options)
        pair.run(mode, Work(1, 4 * IN_FLIGHT, IN_FLIGHT, idle_s=ENGINE_PASS_S))
    rooms = QUICK_ROOMS if quick else ROOMS
    taken: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    for number in range(ROUNDS_MORE * rounds):
        tell(f"observation: round {number + 1} of {ROUNDS_MORE * rounds}")
        for mode in MODES if number % 2 == 0 else reversed(MODES):
            taken[mode].append(pair.run(mode, Work(1, rooms, IN_FLIGHT, idle_s=ENGINE_PASS_S)))
    for mode in MODES:
        pair.close(mode)
    return [_row(mode, rooms, taken) for mode in MODES]


def _row(mode: str, rooms: int, taken: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    held, engine = (
        {role: _us(taken[mode], role, key, rooms) for role in Pair.ROLES} for key in ("held_s", "engine_cpu_s")
    )
    off = {role: _us(taken[OFF], role, "engine_cpu_s", rooms) for role in Pair.ROLES}
    cpu = {role: [one["cpu_s"][role] / rooms * 1e6 for one in taken[mode]] for role in Pair.ROLES}
    return {
        "mode": mode, "rooms": rooms, "in_flight": IN_FLIGHT,
        "held_us": {role: Spread.of(held[role]) for role in Pair.ROLES},
        "engine_us": {role: Spread.of(engine[role]) for role in Pair.ROLES},
        "ratio": {role: Spread.of(quotients(engine[role], off[role])) for role in Pair.ROLES},
        "cpu_us": {role: Spread.of(cpu[role]) for role in Pair.ROLES},
        "others_busy": Spread.of([one["others_busy"] for one in taken[mode]]),
    }  # fmt: skip


def _us(taken: list[dict[str, Any]], role: str, key: str, rooms: int) -> list[float]:
    return [one["sides"][role][key] / rooms * 1e6 for one in taken]
