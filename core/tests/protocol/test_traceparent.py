"""A request's trace: which texts are one, and that it crosses to the other side, from either side, past old peers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from core.tests.protocol.support import Bench, Rank
from kv_core.contract.records import RoomEventKind
from kv_core.contract.traceparent import clean_traceparent
from kv_core.protocol import messages as msg
from kv_core.protocol.rooms import Room

ONE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


@pytest.mark.parametrize("text", [ONE, OTHER])
def test_what_is_one(text: str):
    assert clean_traceparent(text) == text


@pytest.mark.parametrize("more", ["", "-what comes later"])
def test_a_newer_version_is_read_as_far_as_this_one_goes(more: str):
    assert clean_traceparent(f"cc{ONE[2:]}{more}") == ONE


@pytest.mark.parametrize(
    "wrong",
    [
        "", "00", ONE[:-1], f"{ONE}0", f"{ONE}-", f"{ONE}-more", f"ff{ONE[2:]}", ONE.upper(), ONE.replace("-", "_"),
        f"cc{ONE[2:]}more", f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-{'a' * 32}-{'0' * 16}-01", f" {ONE}", f"{ONE}\n",
        ONE.replace("b", "g"), None, 7, b"00", ["00"], "x" * 100_000, ONE.replace("0af", "\u0660af"),
    ],
)  # fmt: skip
def test_what_is_none(wrong: object):
    assert clean_traceparent(wrong) is None


def bound(bench: Bench, prefill: Rank, decode: Rank, *, up: str | None, down: str | None, early: bool) -> list[Room]:
    """A room for which either engine may have named a trace; ``early``: decode comes first."""

    def open_decode() -> Room:
        room = decode.do(decode.machine.open, 5, "boot:8998", traceparent=up)
        decode.init(room)
        decode.offer(room, 7)
        bench.pump()
        return room

    rooms = [open_decode()] if early else []
    source = prefill.do(prefill.machine.open, 5, "boot:8998", traceparent=down)
    prefill.init(source, 1)
    bench.pump()
    target = rooms[0] if rooms else open_decode()
    prefill.send(source, 3)
    prefill.land()
    bench.pump()
    return [source, target]


def named(rank: Rank, room: Room, kind: RoomEventKind = RoomEventKind.CONCLUDED) -> str | None:
    """The trace that this event of a room names."""
    (event,) = [each for each in rank.told if each.life == room.life and each.kind is kind]
    return event.traceparent


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(
    ("up", "down", "at_decode", "at_prefill"),
    [(ONE, None, ONE, ONE), (None, OTHER, OTHER, OTHER), (ONE, OTHER, ONE, OTHER), (None, None, None, None)],
)
def test_a_side_that_was_given_none_takes_the_others(early, up, down, at_decode, at_prefill):
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = bound(bench, prefill, decode, up=up, down=down, early=early)
    assert (named(prefill, source), named(decode, target)) == (at_prefill, at_decode)
    assert named(decode, target, RoomEventKind.OPENED) == up
    assert prefill.machine.counters["bad_traceparents"] == decode.machine.counters["bad_traceparents"] == 0


@pytest.mark.parametrize("wrong", ["nonsense", f"{ONE}0", ""])
def test_nonsense_of_a_peer_is_ignored_and_counted(wrong: str):
    bench = Bench()
    prefill, decode = bench.pair()
    source, target = bound(bench, prefill, decode, up=wrong, down=wrong, early=False)
    assert prefill.machine.counters["bad_traceparents"] == decode.machine.counters["bad_traceparents"] == 1
    assert source.peer_traceparent is target.peer_traceparent is None
    assert source.poll.name == target.poll.name == "Success"


def test_several_decode_ranks_of_a_room_name_it_once():
    bench = Bench()
    prefill = bench.prefill()
    decodes = [bench.decode(f"d{n}.1", destinations=2) for n in (1, 2)]
    rooms = []
    for rank, trace in zip(decodes, (ONE, OTHER), strict=True):
        room = rank.do(rank.machine.open, 5, "boot:8998", traceparent=trace)
        rank.init(room)
        bench.pump()
        rooms.append(room)
    source = prefill.open(5)
    assert source.peer_traceparent == ONE


@pytest.mark.parametrize("message", [msg.Announce(5, 1, 2, ONE), msg.Bound(5, 1, 2, ONE)], ids=["announce", "bound"])
def test_peers_before_this_field_understand_and_are_understood(message: msg.Message):
    codec = msg.Codec(1 << 16)
    head: dict[str, Any] = {"sender": "a", "receiver": "b", "session": 1}
    packet = msg.Data(**head, seq=1, ack=0, messages=[message])
    assert codec.decode(codec.encode(packet)) == packet
    fields = msgspec.msgpack.decode(codec.encode(packet))
    assert fields[-1][0].pop() == ONE
    old = codec.decode(msgspec.msgpack.encode(fields))
    assert isinstance(old, msg.Data)
    assert old.messages == [msgspec.structs.replace(message, traceparent=None)]


def test_a_text_that_is_too_long_is_no_packet():
    codec = msg.Codec(1 << 16)
    packet = msg.Data(sender="a", receiver="b", session=1, seq=1, ack=0, messages=[msg.Announce(5, 1, 1, "x" * 129)])
    from kv_core.contract.failures import MessageError

    with pytest.raises(MessageError):
        codec.decode(codec.encode(packet))
