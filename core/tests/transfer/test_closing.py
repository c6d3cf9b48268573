"""The end: what is outstanding, what still comes, and what is left behind."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

from core.tests.transfer.support import DoubleTransport, bench, settings, until
from kv_core.protocol.effects import SubmitChunk


def test_closing_waits_for_what_is_outstanding():
    transport = DoubleTransport(auto=False)
    with bench(transport) as b:
        chunk = b.submit(b.peer("decode"), [1], [1])
        until(lambda: transport.posted)
        result: list[bool] = []
        closing = threading.Thread(target=lambda: result.append(b.engine.close(60.0)))
        closing.start()
        until(lambda: not b.engine._accepting)
        b.engine.put(SubmitChunk(b.chunk(b.stranger("late"), [1], [1])))
        assert not transport.closed
        transport.land(transport.posted[0])
        closing.join(60.0)
        assert result == [True]
        assert chunk.settled
        assert transport.closed
        assert transport.registered == []
        assert "deregister_memory" in transport.calls


def test_closing_gives_up_at_its_deadline_and_says_so():
    transport = DoubleTransport(auto=False)
    with bench(transport) as b:
        peer = b.peer("decode")
        chunk = b.submit(peer, [1], [1])
        until(lambda: transport.posted)
        assert not b.engine.close(0.0)
        assert b.failure(chunk) == ("the transfer engine was closed", False)
        assert "deregister_memory" not in transport.calls
        assert transport.closed
        assert transport.posted[0].released
        assert not b.engine.close(5.0)
        assert transport.calls.count("close") == 1
        late = b.submit(peer, [2], [2])
        assert not late.claimed
        assert not any(b.counts().values())


def test_closing_at_rest_is_quiescent_whatever_the_deadline():
    with bench() as b:
        chunk = b.submit(b.peer("decode"), [1], [1])
        until(lambda: b.has_landed(chunk))
        assert b.engine.close(0.0)
        assert not b.engine.health()["kv-transfer"]["alive"]


def test_closing_before_the_start_closes_the_transport():
    with bench(start=False) as b:
        b.peer("decode")
        assert b.engine.close(1.0)
        assert b.engine.close(1.0)
        assert b.transport.closed
        b.engine.start()
        assert b.transport.calls.count("close") == 1


def test_chunks_that_wait_are_reported_or_never_claimed():
    config = settings(window_bytes=256)
    transport = DoubleTransport(config, auto=False)
    with bench(transport, config=config) as b:
        peer = b.peer("decode")
        chunks = [b.submit(peer, [k], [k]) for k in range(10)]
        stranger = b.submit(b.stranger("nobody"), [1], [1])
        until(lambda: b.engine.snapshot()["outstanding_bytes"] == 256)
        assert not b.engine.close(0.0)
        assert all(chunk.settled == chunk.claimed for chunk in [*chunks, stranger])
        assert not any(b.counts().values())


def test_effects_that_were_put_before_the_start_are_performed_after_it():
    with bench(start=False) as b:
        chunk = b.submit(b.peer("decode"), [1], [1])
        assert b.engine.snapshot()["queued_chunks"] == 1
        b.engine.start()
        until(lambda: b.has_landed(chunk))


def test_a_program_that_forgets_to_close_ends_all_the_same():
    program = """
        from core.tests.transfer.support import Bench, DoubleTransport, Memory, settings, ALL
        from time import monotonic
        b = Bench(DoubleTransport(), settings(), ALL, monotonic, Memory(seed=1))
        b.engine.start()
        b.peer("decode")
        print("ended")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


def test_stalled_says_for_how_long_the_owner_is_held():
    now = [0.0]
    hold, held = threading.Event(), threading.Event()
    with bench(clock=lambda: now[0]) as b:
        peer = b.peer("decode")

        def block(_prepared, _batch):
            held.set()
            assert hold.wait(60.0)

        b.transport.on_submit = block
        chunk = b.submit(peer, [1], [1])
        assert held.wait(60.0)
        now[0] = 7.5
        assert b.engine.stalled_s() == 7.5
        assert b.engine.health()["kv-transfer"]["last_progress_age_s"] == 7.5
        hold.set()
        until(lambda: b.has_landed(chunk))
        until(lambda: b.engine.stalled_s() == 0.0)
