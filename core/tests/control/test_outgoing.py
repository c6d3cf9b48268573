"""Packets that wait for the same peer are joined, and nothing is lost, doubled or overtaken by it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from kv_core.protocol import messages as msg
from kv_core.protocol.effects import SendPacket
from kv_core.protocol.link import BURST, ReliableLink
from kv_core.runtime.outgoing import Outgoing

MAX_BYTES = 1 << 20


class Wire:
    """What went out."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.sent: list[SendPacket] = []
        self.outgoing = Outgoing(self.sent.append, max_bytes)

    def add(self, *packets: msg.Packet, endpoint: str = "tcp://a:1") -> None:
        for packet in packets:
            self.outgoing.add(SendPacket(endpoint, packet))

    def packets(self) -> list[Any]:
        self.outgoing.flush()
        return [effect.packet for effect in self.sent]


def data(seq: int, *messages: msg.Message, ack: int = 0, session: int = 1) -> msg.Data:
    return msg.Data(sender="s", receiver="r", session=session, seq=seq, ack=ack, messages=list(messages))


def announce(number: int) -> msg.Announce:
    return msg.Announce(number, number + 1)


def metadata(number: int, pages: int) -> msg.Metadata:
    items = msg.WireIndices.of(np.arange(pages, dtype=np.uint64))
    return msg.Metadata(number, number + 1, items, {}, None, 0, 1)


def ping(number: int) -> msg.Ping:
    return msg.Ping(sender="s", receiver="r", session=1, number=number, ack=0, endpoint="tcp://a:1")


def test_neighbours_become_one_packet_with_the_newest_acknowledgement() -> None:
    wire = Wire()
    wire.add(data(4, announce(1), ack=7), data(5, metadata(1, 8), announce(2), ack=8), data(7, announce(3), ack=8))
    (packet,) = wire.packets()
    assert packet == data(4, announce(1), metadata(1, 8), announce(2), announce(3), ack=8)


def test_a_bare_acknowledgement_rides_on_what_is_waiting() -> None:
    wire = Wire()
    wire.add(data(1, announce(1), ack=2), data(0, ack=5))
    assert wire.packets() == [data(1, announce(1), ack=5)]


def test_what_does_not_follow_goes_alone_and_in_order() -> None:
    wire = Wire()
    packets: list[msg.Packet] = [
        data(1, announce(1)), data(1, announce(1)), data(3, announce(3)), data(4, announce(4), session=2), ping(1),
        data(5, announce(5), session=2), data(0, ack=3, session=2),
    ]  # fmt: skip
    wire.add(*packets)
    assert wire.packets() == [*packets[:5], data(5, announce(5), ack=3, session=2)]


def test_endpoints_do_not_mix() -> None:
    wire = Wire()
    for seq in (1, 2, 3):
        for endpoint in ("tcp://a:1", "tcp://b:1"):
            wire.add(data(seq, announce(seq)), endpoint=endpoint)
    wire.packets()
    expected = data(1, announce(1), announce(2), announce(3))
    assert sorted(effect.endpoint for effect in wire.sent) == ["tcp://a:1", "tcp://b:1"]
    assert [effect.packet for effect in wire.sent] == [expected, expected]


def test_joined_packets_stay_within_the_limits() -> None:
    limit = 64 * 1024
    wire, codec = Wire(limit), msg.Codec(limit)
    messages: list[msg.Message] = [*(metadata(i, 1_500) for i in range(40)), *(announce(i) for i in range(BURST + 40))]
    wire.add(*(data(seq, message) for seq, message in enumerate(messages, 1)))
    packets = wire.packets()
    assert [message for packet in packets for message in packet.messages] == messages
    assert all(len(packet.messages) <= BURST for packet in packets)
    assert [codec.decode(codec.encode(packet)) for packet in packets] == packets
    assert len(packets) < len(messages) / 4


@pytest.mark.parametrize("seed", range(20))
def test_a_link_hears_the_same_with_and_without_joining(seed: int) -> None:
    """Random decisions, some sent again, on a carrier that loses some: joined packets are as good as single ones."""
    rng = random.Random(seed)
    sender, receiver = ReliableLink(), ReliableLink()
    said: list[msg.Message] = []
    heard: list[msg.Message] = []
    now = 0.0
    while len(said) < 300 or sender.unacknowledged:
        wire = Wire()
        now += 0.3
        for _ in range(rng.randrange(6) if len(said) < 300 else 0):
            said.append(announce(len(said)))
            sender.push(said[-1])
            wire.add(*(data(seq, *batch) for seq, batch in sender.flush(now)))
        wire.add(*(data(seq, *batch) for seq, batch in sender.tick(now)[1]))
        for packet in wire.packets():
            if rng.random() < 0.8:
                heard += receiver.on_data(packet.seq, packet.messages, now)
        if rng.random() < 0.7:
            sender.on_ack(receiver.ack, now)
    assert heard == said, f"repeat with: pytest core/tests/control/test_outgoing.py -k 'joining and {seed}'"
