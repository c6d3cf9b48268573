"""Transports whose submit blocks: a thread for each peer, and none of them holds up another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from core.tests.transfer.support import ALL, Bench, BlockingDouble, bench, quiescent_error, same, settings, until
from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import Capability
from kv_core.contract.failures import TransportError
from kv_core.protocol.effects import RemovePeer
from kv_core.protocol.lifecycle import Phase
from kv_core.runtime.transfer.blocking import DEPTH, Submitter


class Gate:
    """Blocks submissions to some peers until it is opened."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)
        self.inside: list[str] = []
        self.open = threading.Event()
        self.then: Callable[[], None] = lambda: None

    def __call__(self, prepared, _batch) -> None:
        if prepared.peer.name in self.names:
            self.inside.append(prepared.peer.name)
            assert self.open.wait(60.0)
            self.then()


@contextmanager
def blocking(*names: str, config: TransferConfig | None = None, **more) -> Iterator[tuple[Bench, Gate]]:
    """A bench over a BLOCKING double with a gate before some peers."""
    config = config or settings()
    transport, gate = BlockingDouble(config), Gate(*names)
    transport.on_submit = gate
    with bench(transport, config=config, **more) as b:
        try:
            yield b, gate
        finally:
            gate.open.set()


def test_each_peer_has_a_thread_and_everything_else_is_the_owners():
    with blocking() as (b, _):
        peers = [b.peer(f"decode-{k}") for k in range(3)]
        chunks = [b.submit(peers[k % 3], [k], [k]) for k in range(12)]
        until(lambda: all(map(b.has_landed, chunks)))
        assert len(b.transport.threads["submit"]) == 3
        owners = set().union(*(b.transport.threads[name] for name in ("progress", "release", "prepare", "add_peer")))
        assert len(owners) == 1
        assert not owners & b.transport.threads["submit"]
        assert same(b.source, b.targets["decode-1"], "kv", [1, 4, 7, 10], [1, 4, 7, 10])
        assert len(b.engine.health()) == 4
        b.rest()


def test_a_peer_whose_submit_blocks_holds_up_nobody_else():
    with blocking("stuck") as (b, gate):
        stuck, moving = b.peer("stuck"), b.peer("moving")
        held = [b.submit(stuck, [k], [k]) for k in range(10)]
        until(lambda: gate.inside)
        until(lambda: b.engine.snapshot()["unanswered_submissions"] == DEPTH)
        chunks = [b.submit(moving, [k % 16], [k % 16]) for k in range(100)]
        until(lambda: all(map(b.has_landed, chunks)))
        assert not any(map(b.has_landed, held))
        assert b.engine.snapshot()["unanswered_submissions"] == DEPTH
        assert b.engine.stalled_s() == 0.0
        gate.open.set()
        until(lambda: all(map(b.has_landed, held)))
        b.rest()


def test_a_submit_that_takes_too_long_fails_its_room_and_reports_quiescence_when_it_returns():
    now = [0.0]
    config = settings(transferring_timeout_s=5.0)
    with blocking("stuck", config=config, clock=lambda: now[0]) as (b, gate):
        chunk = b.submit(b.peer("stuck"), [1], [1])
        until(lambda: gate.inside)
        now[0] = 5.5
        until(lambda: b.failure(chunk))
        message, quiescent = b.failure(chunk) or ("", True)
        assert message.startswith("TimeoutError: submit() has not returned for 5.5 s")
        assert "transferring_timeout_s=5" in message
        assert not quiescent
        assert b.engine.snapshot()["unanswered_submissions"] == 1
        other = b.submit(b.peer("moving"), [1], [1])
        until(lambda: b.has_landed(other))
        gate.open.set()
        until(lambda: id(chunk) in b.sink.still)
        b.rest()


@pytest.mark.parametrize(("error", "quiescent"), [(quiescent_error(), True), (TransportError("-1"), False)])
def test_an_error_on_a_peers_thread_fails_its_room(error, quiescent):
    with blocking() as (b, _):
        peer = b.peer("decode")
        b.transport.raising["submit"] = lambda _peer: error
        chunk = b.submit(peer, [1], [1])
        until(lambda: b.failure(chunk))
        assert b.failure(chunk) == (f"TransportError: {error}", quiescent)
        b.transport.raising.clear()
        again = b.submit(peer, [1], [1])
        until(lambda: b.has_landed(again))
        assert b.engine.snapshot()["lost_submissions"] == (not quiescent)


def test_a_system_exit_does_not_end_a_peers_thread():
    with blocking() as (b, _):
        peer = b.peer("decode")
        b.transport.raising["submit"] = lambda _peer: SystemExit(1)
        first = b.submit(peer, [1], [1])
        until(lambda: b.failure(first))
        b.transport.raising.clear()
        again = b.submit(peer, [1], [1])
        until(lambda: b.has_landed(again))
        assert len(b.transport.threads["submit"]) == 1


def test_what_was_handed_to_a_thread_is_withheld_when_its_room_ends():
    with blocking("decode") as (b, gate):
        peer = b.peer("decode")
        first, second = b.submit(peer, [1], [1]), b.submit(peer, [2], [2])
        until(lambda: gate.inside and b.engine.snapshot()["unanswered_submissions"] == 2)
        second.room.phase = Phase.FAILED
        gate.open.set()
        until(lambda: b.failure(second))
        assert (b.failure(second) or ("", False))[1]
        until(lambda: b.has_landed(first))
        assert len(b.transport.posted) == 1
        b.rest()


def test_a_room_that_ends_with_a_cancelling_transport_is_cancelled_when_submit_returns():
    with blocking("decode", capabilities=ALL | {Capability.CANCEL}) as (b, gate):
        b.transport.auto = False
        chunk = b.submit(b.peer("decode"), [1], [1])
        until(lambda: gate.inside)
        chunk.room.phase = Phase.FAILED
        gate.open.set()
        until(lambda: b.transport.posted and b.transport.posted[0].cancelled)
        until(lambda: chunk.settled)
        b.rest()


def test_the_number_of_threads_is_bounded():
    config = settings(max_peers=2)
    with blocking("a", "b", config=config) as (b, gate):
        peers = [b.peer(name) for name in ("a", "b", "c")]
        chunks = [b.submit(peer, [1], [1]) for peer in peers[:2]]
        until(lambda: sorted(gate.inside) == ["a", "b"])
        chunks.append(b.submit(peers[2], [1], [1]))
        until(lambda: b.engine.snapshot()["queued_chunks"] == 1)
        assert len(b.engine.health()) == 3
        gate.open.set()
        until(lambda: all(map(b.has_landed, chunks)))
        assert len(b.engine.health()) <= 3


def test_an_idle_thread_ends_and_a_new_one_starts_when_there_is_work():
    now = [0.0]
    with blocking(clock=lambda: now[0]) as (b, _):
        peer = b.peer("decode")
        first = b.submit(peer, [1], [1])
        until(lambda: b.has_landed(first))
        assert len(b.engine.health()) == 2
        now[0] = 1_000.0
        b.peer("other")
        until(lambda: len(b.engine.health()) == 1)
        second = b.submit(peer, [2], [2])
        until(lambda: b.has_landed(second))
        assert len(b.engine.health()) == 2


def test_removing_a_peer_ends_its_thread():
    with blocking() as (b, _):
        peer = b.peer("decode")
        chunk = b.submit(peer, [1], [1])
        until(lambda: b.has_landed(chunk))
        b.engine.put(RemovePeer(peer.key))
        until(lambda: len(b.engine.health()) == 1)
        b.rest()


def test_removing_a_stuck_peer_waits_for_its_submit_and_for_no_other():
    with blocking("stuck") as (b, gate):
        peer = b.peer("stuck")
        chunk = b.submit(peer, [1], [1])
        until(lambda: gate.inside)
        b.engine.put(RemovePeer(peer.key))
        other = b.submit(b.peer("other"), [1], [1])
        until(lambda: b.has_landed(other))
        assert not chunk.settled
        b.transport.breaches.clear()
        gate.open.set()
        until(lambda: chunk.settled)
        until(lambda: len(b.engine.health()) == 2)
        b.rest()


def test_closing_with_a_stuck_submit_returns_at_its_deadline_and_is_not_quiescent():
    with blocking("stuck") as (b, gate):
        chunk = b.submit(b.peer("stuck"), [1], [1])
        until(lambda: gate.inside)
        gate.then = b.transport.breaches.clear  # that this submit ends after close() is the test's own doing
        assert not b.engine.close(0.1)
        assert b.failure(chunk) == ("the transfer engine was closed", False)
        assert b.transport.closed
        assert "deregister_memory" not in b.transport.calls
        gate.open.set()
        until(lambda: not any(thread.name.startswith("kv-submit-stuck") for thread in threading.enumerate()))


def test_closing_ends_every_thread():
    with blocking() as (b, _):
        chunks = [b.submit(b.peer(f"decode-{k}"), [1], [1]) for k in range(5)]
        until(lambda: all(map(b.has_landed, chunks)))
        assert b.engine.close(0.0)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("kv-submit")]


def test_a_system_without_threads_fails_the_room_and_not_the_owner(monkeypatch):
    with blocking() as (b, _):
        peer = b.peer("decode")
        until(lambda: b.engine.snapshot()["peers"] == 1)

        def refuse(_submitter):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(Submitter, "start", refuse)
            chunk = b.submit(peer, [1], [1])
            until(lambda: b.failure(chunk))
        text = "TransportError: no thread could be started to submit to peer decode: can't start new thread"
        assert b.failure(chunk) == (text, True)
        again = b.submit(peer, [1], [1])
        until(lambda: b.has_landed(again))
