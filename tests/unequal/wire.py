"""Cases as JSON values, on their way to a rank process."""

from __future__ import annotations

from typing import Any

from core.tests.layout.topologies.model import Case, Side


def to_json(case: Case) -> dict[str, Any]:
    """Fields by name; stages as pairs of bounds."""
    told: dict[str, Any] = {**vars(case), "source": vars(case.source), "destination": vars(case.destination)}
    told["stages"] = [[[layers.start, layers.stop] for layers in side] for side in case.stages]
    return told


def from_json(told: dict[str, Any]) -> Case:
    """The same case."""
    source, destination = (Side(**told[name]) for name in ("source", "destination"))
    prefill, decode = (tuple(range(*bounds) for bounds in side) for side in told["stages"])
    return Case(**{**told, "source": source, "destination": destination, "stages": (prefill, decode)})
