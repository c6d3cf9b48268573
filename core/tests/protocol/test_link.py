"""The reliable link: exactly once and in order, whatever the carrier does; bounded packets; and an end to the talking."""

from __future__ import annotations

import random

import numpy as np
import pytest

from core.tests.protocol.support import Bench
from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import FailureCode, FailureStage
from kv_core.contract.failures import Failure
from kv_core.protocol import link as links
from kv_core.protocol import messages as msg
from kv_core.protocol.link import MAX_EARLY, ReliableLink


class Carrier:
    """Two links and a carrier that loses, doubles and reorders what is sent between them."""

    def __init__(self, seed: int, loss: float) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.now = 0.0
        self.ends = (ReliableLink(), ReliableLink())
        self.got: tuple[list[int], list[int]] = ([], [])
        self.wire: list[tuple[float, int, int, int, list[msg.Message]]] = []

    def put(self, to: int, seq: int, messages: list[msg.Message]) -> None:
        for _ in range(self.rng.choice((1, 1, 1, 2))):
            if self.rng.random() >= self.loss:
                delay = self.rng.choice((0.001, self.rng.random(), 3 * self.rng.random()))
                self.wire.append((self.now + delay, to, seq, self.ends[1 - to].ack, messages))

    def step(self) -> None:
        self.now += 0.05
        arrived = [entry for entry in self.wire if entry[0] <= self.now]
        self.wire = [entry for entry in self.wire if entry[0] > self.now]
        self.rng.shuffle(arrived)
        for _, to, seq, ack, messages in arrived:
            self.ends[to].on_ack(ack, self.now)
            self.got[to].extend(
                m.life for m in self.ends[to].on_data(seq, messages, self.now) if isinstance(m, msg.Announce)
            )
        for i, end in enumerate(self.ends):
            deadline = end.next_deadline()
            if deadline is not None and deadline <= self.now:
                bare, again = end.tick(self.now)
                for seq, messages in again:
                    self.put(1 - i, seq, messages)
                if bare and not again:
                    self.put(1 - i, 0, [])
            for seq, messages in end.flush(self.now):
                self.put(1 - i, seq, messages)


@pytest.mark.parametrize("seed", range(40))
def test_every_message_arrives_once_and_in_order(seed: int):
    carrier = Carrier(seed, loss=(0.0, 0.1, 0.5, 0.8)[seed % 4])
    sent = ([0, 0], [0, 0])
    for _ in range(200):
        for i, end in enumerate(carrier.ends):
            for _ in range(carrier.rng.choice((0, 0, 1, 5))):
                sent[i][0] += 1
                end.push(msg.Announce(1, sent[i][0]))
        carrier.step()
    for _ in range(20_000):
        if not any(end.unacknowledged for end in carrier.ends) and not carrier.wire:
            break
        carrier.step()
    for i in (0, 1):
        assert carrier.got[1 - i] == list(range(1, sent[i][0] + 1)), f"seed {seed}"
        assert carrier.ends[i].unacknowledged == 0
        assert not carrier.ends[i]._early


def test_two_links_fall_silent_once_everything_is_acknowledged():
    carrier = Carrier(1, loss=0.0)
    carrier.ends[0].push(msg.Announce(1, 1))
    for _ in range(200):
        carrier.step()
    assert not carrier.wire
    assert [end.next_deadline() for end in carrier.ends] == [None, None]


def test_a_gap_holds_back_what_follows_and_no_more_than_a_bounded_lot():
    end = ReliableLink()
    flood = [msg.Announce(1, i + 1) for i in range(3 * MAX_EARLY)]
    assert end.on_data(2, flood, 0.0) == []
    assert len(end._early) == MAX_EARLY - 1
    assert len(end.on_data(1, [msg.Announce(1, 1)], 0.0)) == MAX_EARLY
    assert end.ack == MAX_EARLY


def test_numbers_from_nowhere_change_nothing():
    end = ReliableLink()
    end.push(msg.Announce(1, 1))
    end.on_ack(2**62, 0.0)
    assert end.unacknowledged == 1, "what was never sent can't be acknowledged"
    assert end.on_data(0, [msg.Announce(1, 1)], 0.0) == []
    assert end.on_data(2**62, [msg.Announce(1, 1)], 0.0) == []
    assert end.duplicates == 1


def test_a_peer_that_acknowledges_nothing_is_lost_at_the_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(links, "MAX_UNACKED", 50)
    bench = Bench()
    prefill, decode = bench.pair()
    bench.dead.add(prefill.name)
    rooms = [decode.open(i) for i in range(60)]
    for room in rooms:
        decode.init(room)
    assert not decode.machine.peers
    assert {room.failure.code for room in rooms if room.failure is not None} == {FailureCode.OVERLOADED}


def test_packets_are_bounded_in_bytes_too():
    end = ReliableLink(burst_bytes=10_000)
    codec = msg.Codec(1 << 20)
    pages = msg.WireIndices.of(np.arange(1_000, dtype=np.uint64))
    for life in range(1, 21):
        end.push(msg.Metadata(1, life, pages, {}, None, 0, 1))
    end.push(msg.Metadata(1, 21, msg.WireIndices.of(np.arange(9_000, dtype=np.uint64)), {}, None, 0, 1))
    end.push(msg.Announce(1, 22))
    for packets in (end.flush(0.0), end.tick(100.0)[1]):
        sizes = [
            len(codec.encode(msg.Data(sender="s" * 128, receiver="r" * 128, session=1, seq=seq, ack=0, messages=batch)))
            for seq, batch in packets
        ]
        assert [seq for seq, _ in packets] == [*range(1, 20, 2), 21, 22]
        assert all(size < 10_000 + msg.MAX_HEADER for size in sizes if size < 30_000)


def _failure(text: str) -> msg.WireFailure:
    return msg.WireFailure.of(Failure(FailureStage.TRANSFER, FailureCode.TIMEOUT, text, origin=text, peer=text))


HUGE = msg.WireIndices.of(np.arange(70_000, dtype=np.uint64))
LONG = "\U0001f600" * 128
DIGEST = msg.ChunkDigest(2**63 - 1, 2**63 - 1, 2**31, 2**31, {LONG: (2**62, 2**62)}, True, 2**64 - 1)


@pytest.mark.parametrize(
    "message",
    [
        msg.Announce(2**63 - 1, 2**63 - 1),
        msg.Metadata(2**63 - 1, 2**63 - 1, HUGE, {LONG: HUGE, "x": HUGE}, 2**63 - 1, 2**63 - 1, 65_536),
        msg.Abort(2**63 - 1, 2**63 - 1, _failure("\U0001f600" * 9_000)),
        msg.Concluded(1, 1, None),
        msg.Concluded(1, 1, _failure("\U0001f600" * 9_000)),
        msg.Lease([2**63 - 1] * 8_192),
        msg.Bound(2**63 - 1, 2**63 - 1, 2**63 - 1),
        msg.Done(2**63 - 1, 2**63 - 1, 2**63 - 1, 2**63 - 1, 2**63 - 1, 1e12, LONG, 2**63 - 1, [DIGEST] * 99, [b"r" * 70_000] * 3),
        msg.Failed(2**63 - 1, 2**63 - 1, _failure("x" * 9_000), True),
        msg.Quiesced(2**63 - 1, 2**63 - 1),
        msg.SessionQuiesced(2**63 - 1),
    ],
    ids=lambda message: type(message).__name__,
)  # fmt: skip
def test_the_weight_of_a_message_is_never_too_small(message: msg.Message):
    codec = msg.Codec(1 << 25)
    name = "\U0001f600" * 128
    packet = msg.Data(sender=name, receiver=name, session=2**63 - 1, seq=2**63 - 1, ack=2**63 - 1, messages=[message])
    size = len(codec.encode(packet))
    assert size <= msg.weight(message) + msg.MAX_HEADER
    assert msg.weight(message) < 4 * size + 1_024
    assert codec.decode(codec.encode(packet)) == packet


SMALL = TransferConfig(
    max_message_bytes=20_000, bootstrap_timeout_s=10, waiting_timeout_s=8, transferring_timeout_s=6, lease_s=4
)  # fmt: skip


def test_pages_that_do_not_fit_a_message_fail_their_room_and_no_other():
    bench = Bench()
    prefill, decode = bench.pair(settings=SMALL)
    source, target = prefill.open(5), decode.open(5)
    decode.init(target)
    decode.offer(target, *range(40_000))
    bench.pump()
    assert target.failure is not None
    assert target.failure.code is FailureCode.OVERLOADED
    assert "max_message_bytes" in target.failure.message
    assert target.release_safe
    assert source.failure is not None
    assert source.failure.message == target.failure.message
    other = bench.bound(prefill, decode, 6)
    assert [room.failure for room in other] == [None, None]


def test_an_end_that_does_not_fit_a_message_fails_its_room_and_no_other():
    bench = Bench()
    prefill, decode = bench.pair(settings=SMALL)
    source, target = prefill.open(5), decode.open(5)
    prefill.init(source, 1, aux=1)
    decode.init(target)
    decode.offer(target, 7, aux=1)
    bench.pump()
    prefill.send(source, 1)
    prefill.land(aux_rows=(b"r" * 30_000,))
    bench.pump()
    for room in (source, target):
        assert room.failure is not None
        assert room.failure.code is FailureCode.OVERLOADED
        assert room.release_safe
    assert [room.failure for room in bench.bound(prefill, decode, 6)] == [None, None]


def test_a_text_that_utf8_can_not_hold_holds_up_nobody():
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = bench.bound(prefill, decode)
    prefill.abort(source, "file \udcff is broken" * 1_000)
    bench.pump()
    assert target.failure is not None
    assert target.failure.code is FailureCode.ABORTED_REMOTE
    assert target.failure.message.startswith("file ? is broken")
