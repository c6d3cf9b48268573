"""The life cycle is what the table says, in both machines, and the diagram shows all of it."""

from __future__ import annotations

import pytest

from core.tests.protocol.support import SHORT, Bench, identity
from core.tests.simulation.rules import Rules
from kv_core.contract.enums import FailureCode, FailureStage, KVPoll, Role
from kv_core.contract.failures import Failure
from kv_core.contract.records import RoomEventKind
from kv_core.protocol.decode import DecodeMachine
from kv_core.protocol.lifecycle import DECODE, POLL, PREFILL, STAGE, TERMINAL, Action, Event, Phase, Table, diagram
from kv_core.protocol.machine import Machine
from kv_core.protocol.prefill import PrefillMachine
from kv_core.protocol.rooms import Room

SIDES = [pytest.param(Role.PREFILL, PREFILL, id="prefill"), pytest.param(Role.DECODE, DECODE, id="decode")]


def machine(role: Role) -> Machine:
    kind = PrefillMachine if role is Role.PREFILL else DecodeMachine
    return kind(identity(role, "x.1"), SHORT, Rules())


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name)
@pytest.mark.parametrize(("role", "table"), SIDES)
def test_every_event_in_every_phase(role: Role, table: Table, phase: Phase, event: Event):
    it = machine(role)
    done: list[Action] = []
    it._actions = {action: lambda room, now, action=action: done.append(action) for action in Action}  # type: ignore[misc]
    room = Room(role, 5, 1, "addr", 0.0)
    room.enter(phase)
    expected = table.get((phase, event))
    changed = it._apply(room, event, 0.0)
    if expected is None:
        assert not changed
        assert (room.phase, done) == (phase, [])
        assert it.counters[f"ignored_{event.name.lower()}"] == 1
    else:
        assert changed
        assert (room.phase, done) == (expected[0], list(expected[1]))
        assert not it.counters


@pytest.mark.parametrize(("role", "table"), SIDES)
def test_the_shape_of_the_table(role: Role, table: Table):
    phases = {phase for edge in table for phase in (edge[0], table[edge][0])}
    assert not any(phase in TERMINAL for phase, _ in table), "there is a way out of an end"
    for phase in phases - TERMINAL:
        assert table[phase, Event.FAILED][0] is Phase.FAILED, "every live phase can fail"
        assert STAGE[phase]
    for (_, event), (after, actions) in table.items():
        assert (Action.REPORT in actions) == (after in TERMINAL), "an end is reported, and nothing else is"
        assert (after is Phase.FAILED) == (event is Event.FAILED)
    reached = {Phase.OPEN}
    for _ in table:
        reached |= {after for (before, _), (after, _) in table.items() if before in reached}
    assert reached == phases
    for (before, _), (after, _) in table.items():
        assert after in TERMINAL or POLL[after] >= POLL[before], "poll() would go backwards"


@pytest.mark.parametrize(("role", "table"), SIDES)
def test_each_action_has_a_method(role: Role, table: Table):
    wanted = {action for _, actions in table.values() for action in actions}
    assert wanted <= set(machine(role)._actions)


@pytest.mark.parametrize(("role", "table"), SIDES)
def test_the_diagram_has_each_edge_once(role: Role, table: Table):
    lines = diagram(table, role.value).splitlines()
    assert lines[0] == "stateDiagram-v2"
    edges = [line.strip() for line in lines if "-->" in line]
    expected = [f"{a.value} --> {b.value}: {event.value}" for (a, event), (b, _) in table.items()]
    assert sorted(edges) == sorted([*expected, "[*] --> open", "success --> [*]", "failed --> [*]"])


def test_poll_shows_an_end_only_once_failure_and_metric_are_there():
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = bench.bound(prefill, decode)
    seen: list[tuple[KVPoll, bool]] = []
    it = prefill.machine
    report = it._actions[Action.REPORT]

    def watch(room: Room, now: float) -> None:
        seen.append((room.poll, room.failure is None))
        report(room, now)

    it._actions[Action.REPORT] = watch
    prefill.abort(source)
    assert seen == [(KVPoll.WaitingForInput, False)]
    assert source.poll is KVPoll.Failed
    assert target.poll is KVPoll.Transferring


def test_events_are_told_in_order_and_the_end_once():
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = bench.bound(prefill, decode)
    prefill.send(source, 1, 2)
    prefill.land()
    bench.pump()
    for rank, room in ((prefill, source), (decode, target)):
        rank.abort(room)
        rank.do(rank.machine.invalid, room, "late")
        rank.clear(room)
        rank.abort(room)
        kinds = [event.kind for event in rank.told if event.life == room.life]
        posted = [RoomEventKind.CHUNK_POSTED] if rank is prefill else []
        assert kinds == [RoomEventKind.OPENED, *posted, RoomEventKind.CONCLUDED, RoomEventKind.RELEASED]
        assert room.failure is None
        assert room.poll is KVPoll.Success


def test_a_failure_keeps_the_origin_of_its_first_finder():
    failure = Failure(FailureStage.QUEUED, FailureCode.TIMEOUT, "x", origin="p (1)")
    assert failure.with_origin("d (2)").origin == "p (1)"
