"""The sending thread with a codec that waits: what overflow drops, and how it is said."""

from __future__ import annotations

import threading

import msgspec
import pytest
import zmq

from core.tests.events.support import batch, stored, until
from kv_core.events import AllBlocksCleared, decode_batch, make_profile
from kv_core.events.profiles import MapProfile
from kv_core.events.queueing import DroppingQueue, Loss
from kv_core.events.ring import ReplayRing
from kv_core.events.sender import Sender


class Gate(MapProfile):
    """Writes nothing down until it is opened."""

    def __init__(self):
        super().__init__()
        self.entered = threading.Event()
        self.open = threading.Event()

    def encode(self, batch):
        self.entered.set()
        assert self.open.wait(30)
        return super().encode(batch)


@pytest.fixture
def parts(request):
    """A sender with its queue and ring, made by a call; stopped in the end."""
    made = []

    def make(codec, capacity=3):
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        queue, ring = DroppingQueue(capacity), ReplayRing(100, 10)
        sender = Sender(
            socket, queue, ring, codec, topic=b"", rank=4, first_seq=10, epoch=5, wall_clock=lambda: 9.0
        )  # fmt: skip
        made.append((sender, codec))
        return sender, queue, ring

    yield make
    for sender, codec in made:
        if isinstance(codec, Gate):
            codec.open.set()
        sender.stop(10)
        assert not sender.running


def kept(ring):
    return [(seq, decode_batch(payload).batch) for seq, payload in ring.since(0).batches]


def test_overflow_is_said_where_it_happened_and_numbers_have_no_holes(parts):
    gate = Gate()
    sender, queue, ring = parts(gate, capacity=3)
    sender.start()
    queue.put(batch(stored(0)))
    assert gate.entered.wait(30)  # the sender has batch 0 in hand
    for block in range(1, 8):
        queue.put(batch(stored(block), stored(block)))
    assert queue.loss == Loss(4, 8)
    gate.open.set()
    until(lambda: len(ring) == 5, "everything sent")
    seqs, batches = zip(*kept(ring), strict=True)
    assert seqs == (10, 11, 12, 13, 14)
    assert [one.events[0].block_hashes for one in (batches[0], *batches[2:])] == [[0], [5], [6], [7]]
    assert batches[1].events == [AllBlocksCleared("overflow", 4, 8, 5)]
    assert (batches[1].ts, batches[1].attn_dp_rank) == (9.0, 4)
    assert sender.lost == Loss(4, 8)


class Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[Cleared]
    rank: int | None


def test_an_existing_consumer_survives_the_news():
    """A typed decoder that knows of no reasons reads a plain clearing."""

    payload = make_profile("map").encode(batch(AllBlocksCleared("overflow", 1, 2, 3)))
    assert msgspec.msgpack.decode(payload, type=Batch).events == [Cleared()]


def test_a_batch_that_cannot_be_written_is_lost_and_said_and_the_stream_goes_on(parts):
    sender, queue, ring = parts(MapProfile())
    sender.start()
    queue.put(batch(stored(1)))
    queue.put(batch(object()))
    until(lambda: sender.unencodable.batches == 1, "the bad batch")
    queue.put(batch(stored(2)))
    until(lambda: len(ring) == 3, "the rest")
    batches = [one for _, one in kept(ring)]
    assert batches[1].events == [AllBlocksCleared("overflow", 1, 1, 5)]
    assert sender.next_seq == 13
    assert sender.troubles.count == 2


def test_stop_sends_what_waits_and_joins(parts):
    sender, queue, ring = parts(MapProfile(), capacity=1000)
    for block in range(500):
        queue.put(batch(stored(block)))
    sender.start()
    assert sender.stop(20)
    assert len(ring) == 100
    assert sender.next_seq == 510


def test_stop_gives_up_on_what_does_not_move(parts):
    gate = Gate()
    sender, queue, _ = parts(gate, capacity=1000)
    sender.start()
    for block in range(5):
        queue.put(batch(stored(block)))
    assert gate.entered.wait(30)
    assert not sender.stop(0.05)
    gate.open.set()
    until(lambda: not sender.running, "the thread's end")
    assert sender.next_seq == 11  # the one in hand; the others were given up
