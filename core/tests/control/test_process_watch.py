"""When the end of a writer's process is told: not before what it sent has had its time to be read."""

from __future__ import annotations

from kv_core.contract.transport import PeerKey
from kv_core.runtime.process_watch import LOOK_S, LOOKS_AFTER_DEATH, ProcessWatch

ONE, OTHER = PeerKey("one", 1), PeerKey("other", 1)


def test_a_death_is_told_once_after_so_many_looks_while_this_process_ran() -> None:
    told: list[str] = []
    dead: set[object] = set()
    watch = ProcessWatch(told.append, lambda process: process["pid"] in dead)
    assert watch.wait_s(0.0, 5.0) == 5.0
    watch.add(ONE, {"pid": 1})
    watch.add(OTHER, {"pid": 2})
    now = 0.0
    for _ in range(100):
        now += LOOK_S
        watch.look(now)
    assert told == []
    dead.add(1)
    now += 1e6  # stopped for days: that is one look, not many
    for _ in range(LOOKS_AFTER_DEATH):
        watch.look(now)
        watch.look(now + LOOK_S / 2)  # too early to count
        watch.add(PeerKey("one", 2), {"pid": 1})  # a later session of the same process: again is once
        now += LOOK_S
    assert told == []
    assert 0.0 < watch.wait_s(now - LOOK_S / 2, 5.0) <= LOOK_S
    watch.look(now)
    assert told == ["one"]
    for _ in range(100):
        now += LOOK_S
        watch.look(now)
    assert told == ["one"]
