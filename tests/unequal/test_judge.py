"""What judges must be able to say no: to each kind of wrong byte, a wrong metric, a sentence without its rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from core.tests.layout.topologies.model import Case, Side
from kv_core import Role
from tests.support.orders import Outcome
from tests.unequal import judge
from tests.unequal.engine import RoomOrder
from tests.unequal.faults import FAULTS, parts
from tests.unequal.judge import run_pair
from tests.unequal.memory import GUARD_BYTES, POISON_BYTE, SPARE_BYTE, RankMemory
from tests.unequal.pairs import PAIRS
from tests.unequal.refused import REFUSED, run_refused
from tests.unequal.scene import Scene, Workers, state_pools
from tests.unequal.sending import STYLES, sends
from tests.unequal.wire import from_json, to_json

CASE = Case(Side(tp=2), Side(), tokens=12, stages=((range(3),), (range(3),)), seed=3)


def memory(role: Role) -> RankMemory:
    return RankMemory(CASE, role, (0, 0, 0, 0), state_pools(CASE))


def deliver(target: RankMemory) -> None:
    """As if all had gone well."""
    target.arena[:] = target.expected


def test_a_destination_begins_as_poison_and_each_wrong_byte_is_seen():
    target = memory(Role.DECODE)
    wanted = target.count(served=True).wanted
    assert (target.arena == POISON_BYTE).all()
    assert target.count(served=False).wrong == 0
    assert (target.count(served=True).missing, target.count(served=True).wrong) == (wanted, wanted)
    deliver(target)
    assert target.count(served=True).wrong == 0
    assert target.count(served=True).written == wanted == target.count(served=False).wrong
    for at in np.flatnonzero(target.expected == POISON_BYTE).tolist():  # spare pages, other rows, guards
        target.arena[at] = 1
        assert target.count(served=True).strays == target.count(served=True).wrong == 1
        target.arena[at] = POISON_BYTE
    for at in np.flatnonzero(target.expected != POISON_BYTE).tolist():
        right = target.arena[at]
        target.arena[at] = right % 250 + 1
        assert target.count(served=True).wrong == 1
        target.arena[at] = right


def test_a_source_that_changes_is_seen():
    source = memory(Role.PREFILL)
    assert source.count(served=True).wrong == 0
    assert SPARE_BYTE in source.arena
    for at in range(0, source.arena.size, 7):
        right = source.arena[at]
        source.arena[at] = right ^ 1
        assert source.count(served=True).wrong == 1
        source.arena[at] = right


def test_buffers_lie_apart_in_the_arena():
    found = memory(Role.DECODE)
    buffers = [buffer for pool in found.args.pools() for buffer in pool.buffers]
    ends = [found.arena.ctypes.data] + [buffer.address + buffer.nbytes for buffer in buffers]
    assert [buffer.address - end for buffer, end in zip(buffers, ends, strict=False)] == [GUARD_BYTES] * len(buffers)
    assert ends[-1] + GUARD_BYTES == found.arena.ctypes.data + found.arena.size


def test_generations_differ():
    target = memory(Role.DECODE)
    deliver(target)
    late = target.arena.copy()
    target.fill(1)
    target.arena[:] = late
    count = target.count(served=True)
    assert count.wrong > 0.9 * count.wanted


@pytest.mark.parametrize("style", STYLES)
def test_every_page_on_every_layer_once(style: str):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        pages, layers = rng.permutation(40)[: int(rng.integers(0, 9))], range(2, 2 + int(rng.integers(1, 6)))
        states = {"conv": np.array([3]), "window": np.arange(int(rng.integers(1, 5)))}
        made = sends(style, rng, pages, layers, states)
        seen: dict[int, list[int]] = {layer: [] for layer in layers}
        for send in made:
            for layer in layers if send.layers is None else set(layers) & set(send.layers):
                seen[layer] += send.pages.tolist()
        assert all(one == pages.tolist() for one in seen.values())
        for name, items in states.items():
            assert (
                np.concatenate([send.states[name] for send in made if name in send.states]).tolist() == items.tolist()
            )


def test_cases_cross_as_they_are():
    for pair in PAIRS:
        assert from_json(to_json(pair.case)) == pair.case


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers("fake") as workers:
        yield workers


def broken(monkeypatch: pytest.MonkeyPatch, before_rooms: Any) -> None:
    """Do this to the scene before a room is opened."""
    real = Scene.open

    def open_room(scene: Scene, members: Any, orders: Any) -> None:
        before_rooms(scene)
        real(scene, members, orders)

    monkeypatch.setattr(Scene, "open", open_room)


def test_wrong_content_is_said_of_each_decode_rank(workers: Workers, monkeypatch: pytest.MonkeyPatch):
    broken(monkeypatch, lambda s: s.ask([m for m in s.members if m.role == "prefill"], "fill", generation=1))
    result = run_pair(workers, next(pair for pair in PAIRS if pair.name == "tp 1 to 2, 4 heads"), 1)
    assert len([text for text in result.problems if "wrong bytes" in text]) == 2, result.problems
    assert result.row()["result"] == "WRONG"


class Counted:
    """A scene whose ranks have counted."""

    def __init__(self, *counts: dict[str, int]) -> None:
        self.counts = counts

    def ask(self, members: Any, do: str, **arguments: Any) -> list[dict[str, int]]:
        return list(self.counts)


def test_metrics_are_held_against_the_memory():
    right = {"wanted": 8, "written": 8, "wrong": 0, "missing": 0, "strays": 0}
    members: Any = ["prefill", "decode"]

    def said(sent: int, received: int, state: str = "Success") -> list[str]:
        outcomes = [Outcome(1, "prefill", 0.0, state, nbytes=sent), Outcome(1, "decode", 0.0, state, nbytes=received)]
        return judge.served(Counted(right, right), members, members, outcomes)  # type: ignore[arg-type]

    assert said(8, 8) == []
    assert "its metric says 7 bytes" in said(7, 7)[0]
    assert "they sent 16 bytes, decode's that they got 8" in said(16, 8)[0]
    assert len(said(8, 8, "Failed")) == 2
    spoilt = judge.spoiled(Counted(right | {"wrong": 2, "missing": 1}, right), members)  # type: ignore[arg-type]
    assert len(spoilt) == 1


def test_a_sentence_without_the_rule_and_a_pair_that_is_served_are_told(workers: Workers):
    pair = next(one for one in REFUSED if one.name == "another dtype")
    found = run_refused(workers, replace(pair, rules=("no such rule",)), 1).problems
    assert found
    assert all("does not name the rule" in text for text in found)
    found = run_refused(workers, replace(pair, bad_twist=""), 1).problems
    assert found
    assert all("not refused" in text or "bytes came although" in text for text in found[:2]), found


def test_the_dummy_of_the_faults_must_be_one():
    fault = next(one for one in FAULTS if one.dummies)
    members: Any = [SimpleNamespace(place=(tp, pp, 0, 0)) for tp in (0, 1) for pp in (0, 1)]
    outcomes = [Outcome(1, "prefill", 0.0, nbytes=0 if member.place in fault.dummies else 8) for member in members]
    assert parts(fault, members, outcomes) == []
    for outcome in outcomes:
        right, outcome.nbytes = outcome.nbytes, 0 if outcome.nbytes else 8
        assert parts(fault, members, outcomes) != []
        outcome.nbytes = right


def test_orders_cross_as_they_are():
    order = RoomOrder(3, "127.0.0.1:1", seed=4, dp_rank=1, early=True, style="both", hold=True)
    assert RoomOrder(**order.to_json()) == order
