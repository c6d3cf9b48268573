"""Before the first byte: what must be equal, what need not, and a refusal that says it all on both sides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from core.tests.protocol.support import Bench, Rank
from kv_core.contract.enums import FailureCode, FailureStage, Role, Side
from kv_core.protocol import effects as fx
from kv_core.protocol import messages as msg
from kv_core.protocol.handshake import INFORMATIVE, Difference, differences, refusal
from kv_core.protocol.nodes import RankAddress, Route

BASE: dict[str, Any] = {
    "backend": "b", "revision": "1", "dtype": "bfloat16", "kv_layout": "nhd", "num_kv_heads": 8, "head_dim": 128,
    "tp_size": 1, "pp_size": 1, "cp_size": 1, "state_pools": "mamba", "extra.rope": "neox",
}  # fmt: skip
WRONG: list[dict[str, Any]] = [
    {"model": "other"}, {"page_size": 64}, {"revision": "2"}, {"dtype": "float8_e4m3"}, {"kv_layout": "hnd"},
    {"num_kv_heads": 4}, {"head_dim": 64}, {"tp_size": 2}, {"pp_size": 2}, {"cp_size": 2}, {"backend": "c"},
    {"state_pools": ""}, {"state_pools": "mamba,swa"}, {"extra.rope": "gptj"}, {"page_size": "16"},
    {"model": "M"}, {"model": "m "}, {"page_size": 0},
    {"dtype": "float16", "page_size": 32}, {"model": "x", "revision": "y", "dtype": "z", "head_dim": 1, "extra.rope": ""},
]  # fmt: skip


def greet(prefill: Rank, decode: Rank, bench: Bench, number: int = 5) -> tuple[Any, Any]:
    source, target = prefill.open(number), decode.open(number)
    decode.init(target)
    bench.pump()
    return source, target


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: ",".join(f"{k}={v}" for k, v in wrong.items()))
def test_a_refusal_names_every_difference_with_both_values_on_both_sides(wrong: dict[str, Any]):
    bench = Bench()
    prefill, decode = bench.prefill(**BASE), bench.decode(**(BASE | wrong))
    source, target = greet(prefill, decode, bench)
    mine = prefill.machine.me.introduction.fields
    for room in (source, target):
        failure = room.failure
        assert failure is not None
        assert (failure.stage, failure.code) == (FailureStage.HANDSHAKE, FailureCode.INCOMPATIBLE)
        assert not failure.retryable
        for name, value in wrong.items():
            assert f"{name} (prefill {str(mine[name])!r}, decode {str(value)!r})" in failure.message
        assert failure.message.count("(prefill ") == len(wrong)
        assert room.release_safe
    assert not prefill.machine.peers
    assert not decode.machine.peers
    assert not prefill.wants(fx.AddPeer)


@pytest.mark.parametrize("name", sorted(INFORMATIVE))
def test_what_is_told_but_need_not_be_equal(name: str):
    def told(value: str) -> dict[str, Any]:
        return {name: value}

    bench = Bench()
    prefill, decode = bench.prefill(**told("1")), bench.decode(**told("2"))
    source, target = greet(prefill, decode, bench)
    assert (source.failure, target.failure) == (None, None)


def test_a_field_that_only_one_side_knows_is_ignored():
    bench = Bench()
    prefill, decode = bench.prefill(new_here=1), bench.decode(new_there=2)
    source, target = greet(prefill, decode, bench)
    assert (source.failure, target.failure) == (None, None)
    assert differences({"a": 1}, {"b": 2}) == []
    assert differences({"a": 1, "c": 1}, {"a": "1", "c": 1}) == [Difference("a", "1", "1")]


def test_rooms_that_prefill_opens_after_the_refusal_fail_for_the_same_reason():
    bench = Bench()
    prefill, decode = bench.prefill(), bench.decode(page_size=64)
    targets = [decode.open(number) for number in range(5, 9)]
    for target in targets:
        decode.init(target)
    bench.pump()
    sources = [prefill.open(number) for number in range(5, 9)]
    failures = [room.failure for room in (*sources, *targets)]
    assert {failure.code for failure in failures if failure is not None} == {FailureCode.INCOMPATIBLE}
    assert len({failure and failure.message for failure in failures}) == 1


@pytest.mark.parametrize("late", [True, False])
def test_a_room_that_was_given_up_while_the_refusal_was_on_its_way_fails_on_prefill_as_well(late: bool):
    """It had no link, and the greeting that is refused did not name it: decode's rank can't be served, and can't say so either."""
    bench = Bench()
    prefill, decode = bench.prefill(), bench.decode(model="other")
    first = decode.open(8)
    decode.do(decode.machine.init, first, 9)  # no such data-parallel rank
    (resolve,) = decode.wants(fx.Resolve)
    decode.do(decode.machine.on_route, resolve.addr, bench.route)
    assert [packet.rooms for packet in decode.sent if isinstance(packet, msg.Hello)] == [[8]]
    second = decode.open(9)
    decode.do(decode.machine.init, second, 9)
    assert first.failure is not None
    assert second.failure is not None
    if late:
        bench.pump()
    source = prefill.open(9)
    bench.pump()
    assert source.failure is not None, "prefill waits for a room that nobody will come to"
    assert source.failure.code is FailureCode.INCOMPATIBLE


def test_a_refusal_does_not_touch_rooms_of_others():
    bench = Bench()
    prefill = bench.prefill()
    good, bad = bench.decode("d.1"), bench.decode("x.1", page_size=64)
    source, target = greet(prefill, good, bench)
    other = bad.open(5)  # the same number, by mistake
    bad.init(other)
    bench.pump()
    assert other.failure is not None
    assert (source.failure, target.failure) == (None, None)


def test_after_a_refusal_the_next_room_asks_again():
    bench = Bench()
    prefill, decode = bench.prefill(), bench.decode(page_size=64)
    greet(prefill, decode, bench)
    told = prefill.machine.me.introduction
    decode.machine.me = replace(decode.machine.me, introduction=told)  # configured anew
    room = decode.open(6)
    decode.init(room)
    bench.pump()
    assert room.failure is None


def versioned(packet: msg.Packet, version: int) -> msg.Packet:
    return msgspec.structs.replace(packet, version=version)


def test_another_protocol_version_is_refused_by_prefill():
    bench = Bench()
    prefill, decode = bench.prefill(), bench.decode()
    source, target = prefill.open(5), decode.open(5)
    decode.init(target)
    decode.wants(fx.Resolve)
    decode.do(decode.machine.on_route, "boot:8998", bench.route)
    endpoint, hello = bench.wire.popleft()
    bench.deliver(endpoint, versioned(hello, 2))
    bench.pump()
    for room in (source, target):
        assert room.failure is not None
        assert "protocol_version (prefill '1', decode '2')" in room.failure.message


def test_another_protocol_version_is_refused_by_decode():
    bench = Bench()
    bench.prefill()
    decode = bench.decode()
    target = decode.open(5)
    decode.init(target)
    decode.wants(fx.Resolve)
    decode.do(decode.machine.on_route, "boot:8998", bench.route)
    bench.deliver(*bench.wire.popleft())
    endpoint, welcome = bench.wire.popleft()
    assert isinstance(welcome, msg.Welcome)
    bench.deliver(endpoint, versioned(welcome, 2))
    assert target.failure is not None
    assert target.failure.code is FailureCode.INCOMPATIBLE
    assert "protocol_version (decode '1', prefill '2')" in target.failure.message


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE], ids=str)
def test_a_layout_that_makes_no_sense(role: Role):
    bench = Bench()
    prefill, decode = bench.prefill(), bench.decode()
    rank = prefill if role is Role.PREFILL else decode
    rank.machine.me.introduction.layout["kv"] = -3
    _, target = greet(prefill, decode, bench)
    assert target.failure is not None
    assert target.failure.code is FailureCode.INVALID_REQUEST
    assert "layout" in target.failure.message
    assert target.failure.stage is FailureStage.HANDSHAKE
    bench.pass_time(3)
    assert not prefill.machine.peers
    assert not decode.machine.peers


def test_too_many_decode_ranks_are_refused_with_a_reason_and_known_ones_are_not():
    from kv_core.contract.config import TransferConfig

    bench = Bench()
    prefill = bench.prefill(settings=TransferConfig(max_peers=1))
    first, second = bench.decode("d.1"), bench.decode("x.1")
    bench.meet(first)
    room = second.open(5)
    second.init(room)
    bench.pump()
    assert room.failure is not None
    assert room.failure.code is FailureCode.OVERLOADED
    assert "max_peers" in room.failure.message
    assert room.failure.retryable
    first.do(first.machine.on_connection_refused, prefill.endpoint)
    bench.pass_time(25)
    again = first.open(6)
    first.init(again)
    bench.pass_time(5)
    assert again.failure is None


def test_a_greeting_for_a_process_that_was_replaced_says_so():
    bench = Bench()
    bench.prefill("p.2")
    decode = bench.decode()
    bench.route = Route((1, 1, 1, 1), {(0, 0, 0, 0): RankAddress("tcp://p:7000", "p.1")})  # a stale route
    room = decode.open(5)
    decode.init(room)
    bench.pump()
    assert room.failure is not None
    assert room.failure.code is FailureCode.PEER_REPLACED
    assert room.failure.retryable
    bench.route = Route((1, 1, 1, 1), {(0, 0, 0, 0): RankAddress("tcp://p:7000", "p.2")})
    retry = decode.open(6)
    decode.init(retry)
    bench.pump()
    assert retry.failure is None
    assert retry.phase.value == "ready"


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "tcp://",
        "ipc:///tmp/x",
        "tcp://h:0",
        "tcp://h:99999x",
        "tcp://h",
        "tcp://h:1\n",
        "http://h:1",
        "tcp://a b:1",
    ],
)
def test_addresses_that_nobody_connects_to(endpoint: str):
    bench = Bench()
    prefill = bench.prefill()
    told = msgspec.structs.replace(prefill.machine.me.introduction, endpoint=endpoint)
    for receiver in ("p.1", "p.0"):
        hello = msg.Hello(sender="d.1", receiver=receiver, session=1, introduction=told, rooms=[5])
        prefill.do(prefill.machine.on_packet, hello)
    ping = msg.Ping(sender="d.1", receiver="p.1", session=1, number=1, ack=0, endpoint=endpoint)
    prefill.do(prefill.machine.on_packet, ping)
    assert not prefill.sent
    assert not prefill.machine.peers


def test_the_two_sides_write_the_same_refusal():
    found = [Difference("page_size", "16", "64")]
    turned = [Difference("page_size", "64", "16")]
    first = refusal(found, Role.PREFILL, "p", "d")
    assert "page_size (prefill '16', decode '64')" in first.message
    second = refusal(turned, Role.DECODE, "d", "p")
    assert "page_size (decode '64', prefill '16')" in second.message
    assert first.side is second.side is Side.UNKNOWN
