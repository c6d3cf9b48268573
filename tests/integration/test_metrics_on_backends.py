"""On every backend that is installed: exported bytes are exact, times lie inside the wall time, and aborted rooms add nothing.

Two processes, which are scraped over HTTP; the wall clock is this process's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from time import monotonic

import pytest

from core.tests.observe.support import Samples
from kv_core import BackendLoadError, BackendNotFound, load_backend
from tests.support.memory import Shape
from tests.support.observed_scene import Scene
from tests.support.orders import Order, Outcome
from tests.support.waiting import wait_until

SHAPE = Shape(pages=48, layers=2, page_bytes=128 * 1024, aux_rows=8, aux_bytes=64)
PAGE_BYTES = 4 * SHAPE.page_bytes
PAGES, PREFIX, CHUNKS = 16, 3, 5
ROOM_BYTES = (PAGES - PREFIX) * PAGE_BYTES + SHAPE.aux_bytes
TRIES = 40
SIDES = ("prefill", "decode")
SUCCESS_COUNTS = (
    "wire_seconds", "wire_bytes_per_second", "room_seconds", "bootstrap_seconds", "queue_wait_seconds", "room_bytes",
    "room_chunks",
)  # fmt: skip
STATES: dict[tuple[str, str], dict[str, str | None]] = {
    ("prefill", "open"): {"decode": None}, ("prefill", "ready"): {"prefill": "idle:pages"}, ("prefill", "moving"): {},
    ("prefill", "confirming"): {}, ("decode", "open"): {"decode": "idle:init", "prefill": None},
    ("decode", "ready"): {"decode": "idle:pages"}, ("decode", "offered"): {"prefill": None}, ("decode", "moving"): {},
    ("decode", "verifying"): {},
}  # fmt: skip
"""Where a room is aborted, and how each side has to act for it to be seen there. None: that side does not open it."""


@pytest.fixture(scope="module", params=["fake", "nixl", "mooncake"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    try:
        load_backend(request.param)
    except (BackendLoadError, BackendNotFound) as error:
        pytest.skip(f"{request.param} can't be loaded here: {error}")
    with Scene(request.param, seed=11, shape=SHAPE) as scene:
        scene.start(config={"digest": "all"})
        scene.run = Rooms(scene)  # type: ignore[attr-defined]
        yield scene


class Rooms:
    """Gives orders to both sides, and keeps what became of each."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.number = 0
        self.outcomes: dict[str, list[Outcome]] = {side: [] for side in SIDES}

    def order(self) -> Order:
        self.number += 1
        return Order(self.number, self.scene.addr, pages=PAGES, prefix=PREFIX, chunks=CHUNKS, aux=True)

    def __call__(self, *orders: Order, prefill: str | None = "", decode: str | None = "") -> list[dict[str, Outcome]]:
        """Serve these, until their pages are given back on both sides. By order, then by side."""
        acts = {side: act for side, act in (("prefill", prefill), ("decode", decode)) if act is not None}
        for side, act in acts.items():
            self.scene.ranks[side].open([replace(order, act=act) for order in orders])
        found = []
        for order in orders:
            ends: dict[str, Outcome] = {}
            for side in acts:
                rank = self.scene.ranks[side]
                ends[side] = wait_until(lambda r=rank, n=order.room: r.released.get(n), f"{side}: {order}", 60.0)  # type: ignore[misc]
                self.outcomes[side].append(ends[side])
            found.append(ends)
        return found


def exported(scene: Scene, side: str) -> Samples:
    """What this side exports once its observer has told all that has happened."""
    rooms = len(scene.run.outcomes[side])  # type: ignore[attr-defined]
    wait_until(
        lambda: scene.metric(side, "kv_core_drain_seconds_count") == rooms, f"{side}: every room was released", 60.0
    )
    return scene.scrape(side)


def test_bytes_are_exact_and_times_lie_inside_the_wall_time(scene: Scene):
    run: Rooms = scene.run  # type: ignore[attr-defined]
    before = {side: exported(scene, side) for side in SIDES}
    walls = []
    for _ in range(3):
        began = monotonic()
        (ends,) = run(run.order())
        walls.append(monotonic() - began)
        for outcome in ends.values():
            assert outcome.succeeded, str(outcome)
            assert (outcome.nbytes, outcome.chunks) == (ROOM_BYTES, CHUNKS)
            assert outcome.latency_s is not None
            assert 0 < outcome.latency_s <= outcome.ended_s - outcome.opened_s <= walls[-1]
    # Several at once: more than one room on the wire at a time, and each room's own chunks overlap.
    began = monotonic()
    for ends in run(*(run.order() for _ in range(3))):
        assert all(outcome.succeeded and outcome.nbytes == ROOM_BYTES for outcome in ends.values()), ends
    walls += [monotonic() - began] * 3
    for side in SIDES:
        now = exported(scene, side)
        grown = {name: now.value(f"kv_core_{name}") - before[side].value(f"kv_core_{name}") for name in (
            "room_bytes_sum", "transferred_bytes_total", "room_chunks_sum", "room_seconds_sum", "wire_seconds_sum",
            "bootstrap_seconds_sum", "queue_wait_seconds_sum", "wire_bytes_per_second_sum",
        )}  # fmt: skip
        assert grown["room_bytes_sum"] == grown["transferred_bytes_total"] == len(walls) * ROOM_BYTES
        assert grown["room_chunks_sum"] == len(walls) * CHUNKS
        assert 0 < grown["wire_seconds_sum"] <= grown["room_seconds_sum"] <= sum(walls)
        assert 0 <= grown["bootstrap_seconds_sum"] <= grown["room_seconds_sum"]
        assert 0 <= grown["queue_wait_seconds_sum"] <= grown["room_seconds_sum"]
        # Rooms of one size: the mean of their rates is at least the rate of their mean time.
        mean_rate = grown["wire_bytes_per_second_sum"] / len(walls)
        assert mean_rate >= 0.999 * grown["room_bytes_sum"] / grown["wire_seconds_sum"]
        assert now.value("kv_core_refused_samples_total") == 0
        in_use = [sample.labels["transport"] for sample in now.of("kv_core_backend_info") if sample.value]
        assert in_use
        assert in_use != ["none"]


@pytest.mark.parametrize("state", STATES, ids=" ".join)
def test_an_abort_in_every_state_adds_no_success_and_no_negative_duration(scene: Scene, state: tuple[str, str]):
    run: Rooms = scene.run  # type: ignore[attr-defined]
    side, phase = state
    rank = scene.ranks[side]
    rank.call("give_up_at", phase=phase)
    try:
        for _ in range(TRIES):  # a phase may be over before it is seen, or the verdict be on its way
            (ends,) = run(run.order(), **STATES[state])
            if ends[side].code == "aborted_local":
                break
        else:
            raise AssertionError(f"never aborted in {phase}: {[str(one) for one in run.outcomes[side][-TRIES:]]}")
    finally:
        rank.call("give_up_at", phase="")
    assert f"seen in phase {phase}" in ends[side].message
    for role in SIDES:
        outcomes, now = run.outcomes[role], exported(scene, role)
        good = sum(one.state == "Success" for one in outcomes)
        for name in SUCCESS_COUNTS:
            assert now.value(f"kv_core_{name}_count") == good, f"{role}: {name}: an aborted room was observed"
        assert now.value("kv_core_rooms_concluded_total", outcome="success") == good
        assert now.value("kv_core_rooms_concluded_total", outcome="aborted") == sum(
            one.code.startswith("aborted") for one in outcomes
        )
        assert now.value("kv_core_transferred_bytes_total") == good * ROOM_BYTES
        assert now.value("kv_core_refused_samples_total") == 0
        assert all(sample.value >= 0 for sample in now.all if sample.name.startswith("kv_core_"))
    for role in SIDES:
        assert all(one.latency_s is None for one in run.outcomes[role] if one.state != "Success")
