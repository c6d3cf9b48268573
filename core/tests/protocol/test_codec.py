"""Packets and bytes: there and back, newer peers, and everything that is no packet."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
import pytest

from kv_core.contract.enums import FailureCode, FailureStage, Side
from kv_core.contract.failures import Failure, MessageError
from kv_core.protocol import messages as msg

HEAD: dict[str, Any] = {"sender": "a", "receiver": "b", "session": 3}
FAILURE = msg.WireFailure.of(
    Failure(
        FailureStage.TRANSFER, FailureCode.TRANSPORT_ERROR, "no route", Side.FABRIC, True, "p (1)", "d at tcp://d:1"
    )
)
INDICES = msg.WireIndices.of(np.array([5, 2**31, 0], np.uint64))
INTRODUCTION = msg.Introduction(
    {"model": "m", "page_size": 16},
    {"pools": [{"name": "kv", "items": 7}]},
    b"\0\xff",
    "tcp://h:1",
    "label",
    {"pid": 1},
)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MESSAGES: list[msg.Message] = [
    msg.Announce(2**63 - 1, 1), msg.Announce(5, 1, 4), msg.Announce(5, 1, 4, TRACE),
    msg.Metadata(0, 2, INDICES, {"mamba": INDICES}, 7, 3, 2), msg.Metadata(0, 2, INDICES, {}, None, 0, 1),
    msg.Abort(1, 2, FAILURE), msg.Concluded(1, 2, None), msg.Concluded(1, 2, FAILURE), msg.Lease([1, 2, 2**63 - 1]),
    msg.Bound(1, 2, 3), msg.Bound(1, 2, 3, TRACE),
    msg.Done(1, 2, 3, 4, 5, 0.25, "engine", 6, [msg.ChunkDigest(0, 4, 0, 2, {"s": (0, 1)}, True, 2**64 - 1)], [b"row"]),
    msg.Readable(1, 2, 3, 0, 0, INDICES), msg.Readable(1, 2, 3, 4, 5, INDICES, (0, 3), {"mamba": (2, INDICES)}, 7),
    msg.Pulled(1, 2, 4, 4096, 0.25, 0.5, "engine"), msg.Failed(1, 2, FAILURE, True), msg.Quiesced(1, 2), msg.SessionQuiesced(9),
]  # fmt: skip
PACKETS: list[msg.Packet] = [
    msg.Hello(**HEAD, introduction=INTRODUCTION, rooms=[0, 2**63 - 1]), msg.Welcome(**HEAD, introduction=INTRODUCTION),
    msg.Refuse(**HEAD, failure=FAILURE), msg.Reset(**HEAD, about="c"), msg.Reset(**HEAD, about="c", quiescent=True),
    msg.Bye(**HEAD, quiescent=True),
    msg.Ping(**HEAD, number=1, ack=2, endpoint="tcp://h:1"), msg.Pong(**HEAD, number=1, ack=2, stalled_s=0.5),
    msg.Data(**HEAD, seq=1, ack=0, messages=MESSAGES), msg.Data(**HEAD, seq=0, ack=7, messages=[]),
]  # fmt: skip
LIMIT = 1 << 20


@pytest.mark.parametrize("packet", PACKETS, ids=lambda packet: type(packet).__name__)
def test_there_and_back(packet: msg.Packet):
    codec = msg.Codec(LIMIT)
    data = codec.encode(packet)
    assert codec.decode(data) == packet
    assert codec.decode(memoryview(data)) == packet


@pytest.mark.parametrize("packet", PACKETS, ids=lambda packet: type(packet).__name__)
def test_every_packet_begins_with_the_same_fields(packet: msg.Packet):
    fields = msgspec.msgpack.decode(msg.Codec(LIMIT).encode(packet))
    assert fields[:5] == [type(packet).__name__.lower(), msg.PROTOCOL_VERSION, "a", "b", 3]


def test_every_kind_of_message_and_packet_is_tried():
    assert {type(m) for m in MESSAGES} == set(msg.Message.__args__)
    assert {type(p) for p in PACKETS} == set(msg.Packet.__args__)


@pytest.mark.parametrize("packet", PACKETS, ids=lambda packet: type(packet).__name__)
def test_what_a_newer_peer_appends_is_ignored(packet: msg.Packet):
    codec = msg.Codec(LIMIT)
    fields = msgspec.msgpack.decode(codec.encode(packet))
    fields += ["new", {"more": 1}]
    assert codec.decode(msgspec.msgpack.encode(fields)) == packet


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_a_newer_peer_appends_to_a_message_is_ignored(message: msg.Message):
    codec = msg.Codec(LIMIT)
    packet = msg.Data(**HEAD, seq=1, ack=0, messages=[message])
    fields = msgspec.msgpack.decode(codec.encode(packet))
    fields[-1][0].append("new")
    assert codec.decode(msgspec.msgpack.encode(fields)) == packet


def test_handshake_fields_that_nobody_knows_are_kept_and_harmless():
    codec = msg.Codec(LIMIT)
    fields = msgspec.msgpack.decode(codec.encode(PACKETS[0]))
    introduction = next(field for field in fields if isinstance(field, dict))
    introduction["invented_later"] = [1, 2]
    introduction["fields"]["also_new"] = "x"
    decoded = codec.decode(msgspec.msgpack.encode(fields))
    assert isinstance(decoded, msg.Hello)
    assert decoded.introduction.fields["also_new"] == "x"


def test_an_announcement_of_an_older_peer_is_for_one_destination():
    codec = msg.Codec(LIMIT)
    fields = msgspec.msgpack.decode(codec.encode(msg.Data(**HEAD, seq=1, ack=0, messages=[msg.Announce(5, 1, 4)])))
    del fields[-1][0][-2:]  # older ones knew neither of several destinations nor of traces
    decoded = codec.decode(msgspec.msgpack.encode(fields))
    assert isinstance(decoded, msg.Data)
    assert decoded.messages == [msg.Announce(5, 1, 1)]


def test_codes_that_nobody_knows_yet_are_readable():
    wire = msg.WireFailure("warp", "core_breach", "text", "engineering", False, "", "")
    failure = wire.failure()
    assert (failure.stage, failure.code, failure.side) == (
        FailureStage.TRANSFER, FailureCode.TRANSPORT_ERROR, Side.UNKNOWN,
    )  # fmt: skip
    assert failure.message == "text"


def test_the_other_side_s_abort_is_a_remote_one_here():
    local = Failure(FailureStage.QUEUED, FailureCode.ABORTED_LOCAL, "x")
    assert msg.WireFailure.of(local).failure().code is FailureCode.ABORTED_REMOTE
    remote = msg.WireFailure.of(local).failure()
    assert msg.WireFailure.of(remote).failure() == remote


def test_limits():
    codec = msg.Codec(1_000)
    small = msg.Data(**HEAD, seq=1, ack=0, messages=[msg.Lease(list(range(1, 50)))])
    large = msg.Data(**HEAD, seq=1, ack=0, messages=[msg.Lease(list(range(1, 5_000)))])
    assert codec.decode(codec.encode(small)) == small
    with pytest.raises(MessageError, match="max_message_bytes"):
        codec.encode(large)
    with pytest.raises(MessageError, match="max_message_bytes"):
        codec.decode(msg.Codec(LIMIT).encode(large))


@pytest.mark.parametrize(
    "message",
    [
        msg.Announce(-1, 1), msg.Announce(2**63, 1), msg.Announce(1, 0), msg.Announce(1, 1, 0),
        msg.Announce(1, 1, 65_537), msg.Quiesced(1, -5), msg.SessionQuiesced(-1), msg.Lease([0]), msg.Lease([2**63]),
        msg.Metadata(1, 1, INDICES, {"n" * 129: INDICES}, None, 0, 1), msg.Metadata(1, 1, INDICES, {}, -1, 0, 1),
        msg.Metadata(1, 1, INDICES, {}, None, -1, 1), msg.Metadata(1, 1, INDICES, {}, None, 0, 0),
        msg.Done(1, 1, 1, 1, 1, -0.5, "core", 1, [], []), msg.Done(1, 1, 1, 1, 1, float("nan"), "core", 1, [], []),
        msg.Done(1, 1, 1, 1, 1, float("inf"), "core", 1, [], []), msg.Done(1, 1, 1, -1, 1, 0.5, "core", 1, [], []),
        msg.Abort(1, 1, msg.WireFailure("s", "c", "m" * 4_001, "x", True, "", "")),
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_their_range_are_refused(message: msg.Message):
    codec = msg.Codec(LIMIT)
    data = codec.encode(msg.Data(**HEAD, seq=1, ack=0, messages=[message]))
    with pytest.raises(MessageError):
        codec.decode(data)


@pytest.mark.parametrize(
    "indices",
    [np.array([], np.uint64), np.array([0], np.uint64), np.arange(100_000, dtype=np.uint64),
     np.array([2**32 - 1, 2**32], np.uint64), np.array([2**64 - 1], np.uint64)],
    ids=["none", "one", "many", "wide", "widest"],
)  # fmt: skip
def test_indices_there_and_back(indices: Any):
    wire = msg.WireIndices.of(indices)
    assert wire.array().dtype == np.uint64
    np.testing.assert_array_equal(wire.array(), indices)
    assert len(wire.data) == indices.size * (4 if indices.size == 0 or indices.max() < 2**32 else 8)


@pytest.mark.parametrize(
    "wire",
    [msg.WireIndices(1, b""), msg.WireIndices(0, b"1234"), msg.WireIndices(2, b"123456"), msg.WireIndices(1, b"123"),
     msg.WireIndices(3, b"1" * 36), msg.WireIndices(2**63 - 1, b"1234")],
    ids=str,
)  # fmt: skip
def test_indices_whose_count_and_length_disagree(wire: msg.WireIndices):
    with pytest.raises(MessageError, match="4 or 8 bytes each"):
        wire.array()


def mutated(rng: random.Random, data: bytes) -> bytes:
    what = rng.randrange(6)
    if what == 0:
        return data[: rng.randrange(len(data))]
    if what == 1:
        return rng.randbytes(rng.randrange(200))
    if what == 2:
        return data + rng.randbytes(rng.randrange(1, 9))
    cut = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(cut))
        if what == 3:
            cut[at] = rng.randrange(256)
        elif what == 4:
            cut[at] ^= 1 << rng.randrange(8)
        else:
            del cut[at : at + rng.randrange(1, 4)]
            if not cut:
                break
    return bytes(cut)


def test_twenty_thousand_frames_of_rubbish_give_message_errors_and_nothing_else():
    rng = random.Random(20_000)
    codec = msg.Codec(LIMIT)
    good = [codec.encode(packet) for packet in PACKETS]
    refused = 0
    for i in range(20_000):
        data = mutated(rng, rng.choice(good))
        try:
            packet = codec.decode(data)
            for message in getattr(packet, "messages", []):
                if isinstance(message, msg.Metadata):
                    message.kv.array()
        except MessageError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"frame {i} of seed 20000, {data!r}, raised {error!r}") from error
    assert refused > 10_000


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc0", b"\x90", b"\x91" * 60_000, b"\x81" * 60_000, b"\xdd\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n"],
)
def test_bytes_that_are_meant_to_hurt(data: bytes):
    with pytest.raises(MessageError):
        msg.Codec(LIMIT).decode(data)
