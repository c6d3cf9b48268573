"""Random schedules: whatever the transport does, each claimed chunk has one conclusion, and nothing is left behind."""

from __future__ import annotations

import os
import random

import pytest

from core.tests.transfer.support import (
    ALL,
    Bench,
    BlockingDouble,
    DoubleTransfer,
    DoubleTransport,
    bench,
    quiescent_error,
    settings,
    until,
)
from kv_core.contract.enums import Capability, TransferState
from kv_core.protocol.chunks import TransferKVChunk
from kv_core.protocol.effects import RemovePeer, SubmitChunk
from kv_core.protocol.lifecycle import Phase
from kv_core.protocol.peers import Peer

SEEDS = [int(os.environ["KV_TRANSFER_SEED"])] if "KV_TRANSFER_SEED" in os.environ else list(range(8))


class Schedule:
    """Draws what happens next. Failed rooms end; a peer is removed with its rooms ended, as the protocol does it."""

    def __init__(self, seed: int, b: Bench) -> None:
        self.draw = random.Random(seed)
        self.b = b
        self.peers: list[Peer] = [b.peer(f"decode-{k}") for k in range(5)]
        self.chunks: list[TransferKVChunk] = []
        self.generation = 1
        b.transport.raising["submit"] = lambda _peer: quiescent_error() if self.draw.random() < 0.05 else None
        b.transport.raising["release"] = lambda _transfer: OSError("no") if self.draw.random() < 0.05 else None
        self.hiccups = 0
        b.transport.raising["progress"] = self._hiccup

    def _hiccup(self, asked) -> BaseException | None:
        if self.hiccups and len(asked) > 1:
            self.hiccups -= 1
            return OSError("hiccup")
        return None

    def step(self) -> None:
        """One thing happens."""
        chosen = self.draw.random()
        if chosen < 0.5:
            self._send()
        elif chosen < 0.9:
            self._move()
        elif chosen < 0.95 and self.chunks:
            self.draw.choice(self.chunks).room.phase = Phase.FAILED
        elif chosen < 0.97:
            self._replace()
        else:
            self.hiccups = 1

    def _send(self) -> None:
        peer = self.draw.choice(self.peers)
        count = self.draw.choice([0, 1, 1, 2, 5, 12])
        items = [self.draw.randrange(16) for _ in range(count)]
        room = self.draw.choice(self.chunks).room if self.chunks and self.draw.random() < 0.3 else None
        chunk = self.b.chunk(peer, items, items[::-1], room=room)
        self.chunks.append(chunk)
        self.b.engine.put(SubmitChunk(chunk))

    def _move(self) -> None:
        transport = self.b.transport
        with transport._lock:
            live = [t for t in transport.live.values() if not t.still]
        if not live:
            return
        transfer = self.draw.choice(live)
        if transfer.state is TransferState.FAILED:
            transport.settle(transfer)
        elif self.draw.random() < 0.8:
            transport.land(transfer)
        else:
            transport.fail(transfer, "drawn", quiescent=self.draw.random() < 0.5)

    def _replace(self) -> None:
        place = self.draw.randrange(len(self.peers))
        old = self.peers[place]
        for chunk in self.chunks:
            if chunk.peer == old.key:
                chunk.room.phase = Phase.FAILED
        self.generation += 1
        self.b.engine.put(RemovePeer(old.key))
        self.peers[place] = self.b.peer(old.name, self.generation)

    def end(self) -> None:
        """Let everything land."""
        self.hiccups = 0
        transport = self.b.transport

        def moved() -> bool:
            with transport._lock:
                live = [t for t in transport.live.values() if not t.still]
            for transfer in live:
                finish(transport, transfer)
            return not any(self.b.counts().values())

        until(moved, "rest")


def finish(transport: DoubleTransport, transfer: DoubleTransfer) -> None:
    """Bring a transfer to its end."""
    if transfer.state is TransferState.FAILED:
        transport.settle(transfer)
    else:
        transport.land(transfer)


@pytest.mark.parametrize("capabilities", [ALL, ALL | {Capability.CANCEL}], ids=["plain", "cancel"])
@pytest.mark.parametrize("kind", [DoubleTransport, BlockingDouble])
@pytest.mark.parametrize("seed", SEEDS)
def test_each_claimed_chunk_has_one_conclusion(seed, kind, capabilities):
    print(f"KV_TRANSFER_SEED={seed} python -m pytest core/tests/transfer/test_random.py")
    config = settings(queue_shards=3, window_bytes=6 * 256, max_batch_descriptors=5)
    transport = kind(config, auto=False)
    with bench(transport, config=config, capabilities=capabilities) as b:
        schedule = Schedule(seed, b)
        for _ in range(600):
            schedule.step()
        schedule.end()
        for chunk in schedule.chunks:
            assert chunk.settled == chunk.claimed
            failure = b.failure(chunk)
            assert failure is None or failure[1] or id(chunk) in b.sink.still
        assert all(transfer.still for transfer in transport.live.values())  # release() raised for these
        assert b.engine.snapshot()["lost_submissions"] == 0
        transport.breaches = [text for text in transport.breaches if not (kind is BlockingDouble and "removed" in text)]
