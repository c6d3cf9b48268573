"""How a batch is moved: in pieces that the engine takes whatever its settings are, awaited without a busy loop.

The engine's own waiting call spins. Measured on two cores: it takes half of a core's time that the engine's one IO
thread needs, and with two peers (two threads spinning) the goodput falls to a third. So over TCP the last copy of each
piece is posted by itself: the engine's lanes take copies in order, its status can be asked without waiting, and when it
has landed there are at most a few copies of the piece left to spin for. RDMA completes in any order and in microseconds:
there the spinning call is right, which also tries another device after a failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kv_core.contract.transport import U64
from kv_mooncake.codes import meaning
from kv_mooncake.engine import Engine

PIECE = 512
"""Copies posted by one call: a Python object for each address and length, for the engine takes arrays slower than lists."""
IN_FLIGHT = 2
"""Pieces in flight to one peer. 1,024 copies fit into the engine's queue; what goes beyond it waits there with a deadline."""
COPY_BYTES, PIECE_BYTES = 256 << 10, 32 << 20
"""Longer copies over TCP, and more bytes at once, cost both sides twice the processor time (1.3 instead of 3.7 GB/s)."""
_MIN_PAUSE_S = 50e-6
_MAX_PAUSE_S = 50e-3
_SPREAD = 0.03  # a pause is this part of the time waited so far: the end is noticed so much too late at most
_FIRST_SHARE = 0.8  # of the time that the last piece suggests, slept through before the first look
_MAX_FIRST_S = 20e-3


class Copies(NamedTuple):
    """Three uint64 arrays of one length, at least one: addresses here and there, and lengths in bytes."""

    local: U64
    remote: U64
    length: U64

    def pieces(self) -> Iterator[Copies]:
        """What one call takes at a time."""
        step = min(PIECE, max(1, PIECE_BYTES // int(self.length.max())))
        for start in range(0, len(self.length), step):
            yield Copies(*(array[start : start + step] for array in self))


class Outcome(NamedTuple):
    """``error``: a sentence, or None. ``posted``: the engine took some of it. ``overran``: it used up its time limit."""

    error: str | None
    posted: bool = True
    overran: bool = False


class Piece(NamedTuple):
    """What one call posted, and what it is asked about by."""

    batch: int  # 0: there is only the last copy
    last: int
    nbytes: int
    begun: float
    deadline: float


class Mover:
    """Moves copies with one engine. Any number of threads; ``stop`` makes all of them give up waiting.

    ``timeout_s``: what the engine gives a piece, besides a nanosecond for each byte. ``reads``: copies go from there to here.
    """

    def __init__(
        self, engine: Engine, timeout_s: float, *, spin: bool, clock: Callable[[], float], reads: bool = False
    ) -> None:
        self._engine = engine
        self._reads = reads
        self._timeout_s = timeout_s
        self.spin = spin
        self.clock = clock
        self.stopped = False
        self._pace = 0.0  # seconds for a byte, lately; a guess that threads may share without a lock

    def stop(self) -> None:
        """Nothing more is posted or awaited."""
        self.stopped = True

    def forget(self) -> None:
        """Let go of the engine, which ends with its last reference."""
        self._engine = None

    def post(self, session: str, copies: Copies) -> Piece | Outcome:
        """Let the engine begin with at most ``PIECE`` copies. An outcome: it did not take all of them."""
        engine, now = self._engine, self.clock()
        local, remote, length = copies.local.tolist(), copies.remote.tolist(), copies.length.tolist()
        nbytes = sum(length)
        final = local.pop(), remote.pop(), length.pop()
        many = engine.batch_transfer_async_read if self._reads else engine.batch_transfer_async_write
        batch = many(session, local, remote, length) if local else 0
        if local and not batch:
            return Outcome(f"the engine has no session with the peer at {session} and took nothing", posted=False)
        # The engine has no call that reads one copy; a batch of one can be asked about in the same way.
        last = (
            many(session, *([one] for one in final)) if self._reads else engine.transfer_submit_write(session, *final)
        )
        if not last:
            return Outcome(f"the engine took only a part for the peer at {session}", posted=bool(batch))
        return Piece(batch, last, nbytes, now, now + self._timeout_s + nbytes * 1e-9)

    def wait(self, piece: Piece, since: float) -> Outcome | None:
        """Wait for a piece, whose turn came at ``since`` if that is later than it was posted. None: it has landed."""
        engine = self._engine
        begun = max(since, piece.begun)
        pause = min(piece.nbytes * self._pace * _FIRST_SHARE - (self.clock() - begun), _MAX_FIRST_S)
        if pause > _MIN_PAUSE_S:
            time.sleep(pause)
        while (state := 0 if self.stopped else engine.transfer_check_status(piece.last)) == 0:
            now = self.clock()
            if self.stopped:
                return Outcome("the transport was closed while it was on its way")
            if now >= piece.deadline:
                break
            time.sleep(min(max((now - begun) * _SPREAD, _MIN_PAUSE_S), _MAX_PAUSE_S))
        code = engine.get_batch_transfer_status([piece.batch]) if piece.batch else 0
        now = self.clock()
        if state == 1 and code == 0:
            self._pace = (now - begun) / piece.nbytes
            return None
        if now >= piece.deadline - self._timeout_s * 0.01:
            return Outcome(
                f"not complete after {now - piece.begun:.1f} s: the peer is stopped, or the network is lost or too slow "
                "(MC_TRANSFER_TIMEOUT, in seconds, is the limit besides 1 ns for each byte)",
                overran=True,
            )
        return Outcome(f"{meaning(code or min(state, -1))}, {now - piece.begun:.3f} s after it was posted")

    def move_spinning(self, session: str, copies: Copies) -> Outcome:
        """Move all copies with the engine's waiting call."""
        move = self._engine.batch_transfer_sync_read if self._reads else self._engine.batch_transfer_sync_write
        for start in range(0, len(copies.length), PIECE * IN_FLIGHT):
            begun = self.clock()
            piece = [array[start : start + PIECE * IN_FLIGHT].tolist() for array in copies]
            code = move(session, *piece)
            if code:
                seconds = self.clock() - begun
                return Outcome(
                    f"{meaning(code)}, {seconds:.3f} s after it was posted", overran=seconds >= self._timeout_s
                )
        return Outcome(None)
