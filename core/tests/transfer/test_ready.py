"""Chunks whose source is not ready: asked without blocking, and nobody waits behind them."""

from __future__ import annotations

import threading

from core.tests.transfer.support import bench, same, until
from kv_core.protocol.lifecycle import Phase


class Event:
    """A stand-in for an event of a device: complete when a test says so."""

    def __init__(self) -> None:
        self.complete = False
        self.asked: list[int] = []
        self.error: BaseException | None = None

    def query(self) -> bool:
        """Whether it is complete."""
        self.asked.append(threading.get_ident())
        if self.error is not None:
            raise self.error
        return self.complete


def test_the_source_is_not_read_before_it_is_ready():
    with bench() as b:
        peer, event = b.peer("decode"), Event()
        chunk = b.submit(peer, [1], [2], ready=event)
        other = b.submit(peer, [3], [4])
        until(lambda: b.has_landed(other))
        until(lambda: len(event.asked) > 3)
        assert b.engine.snapshot()["parked_chunks"] == 1
        assert not chunk.claimed
        for array in b.source.arrays["kv"]:
            array[1] = 77
        event.complete = True
        until(lambda: b.has_landed(chunk))
        assert all((array[2] == 77).all() for array in b.targets["decode"].arrays["kv"])
        assert same(b.source, b.targets["decode"], "kv", [1], [2])
        assert set(event.asked) == b.transport.threads["submit"]
        b.rest()


def test_an_event_that_is_complete_is_asked_once():
    with bench() as b:
        event = Event()
        event.complete = True
        chunk = b.submit(b.peer("decode"), [1], [1], ready=event)
        until(lambda: b.has_landed(chunk))
        assert len(event.asked) == 1


def test_a_query_that_raises_fails_its_room_only():
    with bench() as b:
        peer, event = b.peer("decode"), Event()
        chunk = b.submit(peer, [1], [1], ready=event)
        until(lambda: event.asked)
        event.error = RuntimeError("device lost")
        until(lambda: b.failure(chunk))
        assert b.failure(chunk) == ("RuntimeError: device lost (from ready.query())", True)
        other = b.submit(peer, [1], [1])
        until(lambda: b.has_landed(other))
        b.rest()


def test_a_parked_chunk_is_dropped_when_its_room_ends():
    with bench() as b:
        event = Event()
        chunk = b.submit(b.peer("decode"), [1], [1], ready=event)
        until(lambda: b.engine.snapshot()["parked_chunks"] == 1)
        chunk.room.phase = Phase.FAILED
        b.rest()
        assert not chunk.claimed


def test_closing_does_not_wait_for_events():
    with bench() as b:
        chunk = b.submit(b.peer("decode"), [1], [1], ready=Event())
        until(lambda: b.engine.snapshot()["parked_chunks"] == 1)
        assert b.engine.close(30.0)
        assert b.failure(chunk) == ("the transfer engine was closed", True)


def test_many_parked_chunks_become_ready_in_any_order():
    with bench() as b:
        peer = b.peer("decode")
        events = [Event() for _ in range(64)]
        chunks = [b.submit(peer, [k % 16], [k % 16], ready=event) for k, event in enumerate(events)]
        for event in reversed(events):
            event.complete = True
        until(lambda: all(map(b.has_landed, chunks)))
        b.rest()
