"""Whoever finds an open port may say anything there: no thread dies of it, nothing grows, and good rooms go on."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from kv_core import FailureCode, KVPoll
from kv_core.protocol import messages as msg
from tests.support.bad_servers import listening_ports
from tests.support.memory import RankMemory, Shape
from tests.support.pair import QUICK, Pair, assert_success
from tests.support.stranger import Stranger
from tests.support.usage import usage
from tests.support.waiting import wait_until

SHAPE = Shape(pages=32)
SEED = 20_261_121


@pytest.fixture(scope="module")
def shared() -> Iterator[Pair]:
    with Pair(SHAPE, config=QUICK | {"max_message_bytes": 1 << 20}) as pair:
        pair.good_room()
        yield pair


@pytest.fixture
def pair(shared: Pair) -> Iterator[Pair]:
    """In good health before and after."""
    with shared.cleaning():
        yield shared
    shared.good_room()
    shared.at_rest()
    for manager in (shared.prefill, shared.decode):
        for name, thread in manager.health().items():
            assert thread["alive"], name
            assert not thread["exceptions"], (name, thread)
    assert shared.server.health()["alive"]
    assert shared.server.snapshot()["exceptions"] == 0


def noise(rng: random.Random) -> list[bytes]:
    """Short, long and random."""
    texts = [
        b"", b"\0", b"\xff" * 10, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"SSH-2.0-x\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
        b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL" + bytes(48), struct.pack("<Q", 2**63) * 4, b"KVNIC\0\0\1" + bytes(300),
        b"PUT /route HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"\x80" * 70_000,
    ]  # fmt: skip
    return texts + [rng.randbytes(rng.choice((1, 5, 64, 500, 9_000))) for _ in range(20)]


def data_ports(pair: Pair) -> set[int]:
    """What this process listens on beside the control sockets and the bootstrap server."""
    known = {int(manager.endpoint.rpartition(":")[2]) for manager in (pair.prefill, pair.decode)}  # type: ignore[attr-defined]
    return listening_ports() - known - {pair.server.port}


PORTS: dict[str, Callable[[Pair], set[int]]] = {
    "control socket": lambda pair: {int(pair.prefill.endpoint.rpartition(":")[2]), int(pair.decode.endpoint.rpartition(":")[2])},  # type: ignore[attr-defined]
    "bootstrap server": lambda pair: {pair.server.port},
    "data port": data_ports,
}  # fmt: skip


@pytest.mark.parametrize("where", PORTS)
def test_noise_on_a_port(pair: Pair, where: str):
    ports = PORTS[where](pair)
    assert ports
    before = usage()
    with pair.alongside():
        for port in ports:
            for text in noise(random.Random(SEED)):
                with (
                    socket.create_connection(("127.0.0.1", port), timeout=10) as stranger,
                    contextlib.suppress(OSError),
                ):
                    stranger.sendall(text)  # who hangs up in the middle of it is within his rights
            pair.good_room()
    wait_until(lambda: usage()["fds"] <= before["fds"] + 2, "the strangers' connections")


def test_strangers_that_stay_and_say_nothing(pair: Pair):
    with contextlib.ExitStack() as stack, pair.alongside():
        for ports in PORTS.values():
            for port in ports(pair):
                for _ in range(20):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        pair.good_room()


def test_frames_on_the_control_socket(pair: Pair):
    """Random ones, empty ones, too many parts, too long: counted and dropped."""
    texts = noise(random.Random(SEED))
    before = dropped_frames(pair)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(pair.prefill.endpoint)  # type: ignore[attr-defined]
        with pair.alongside():
            for text in texts:
                dealer.send(text)
                dealer.send_multipart([text, b"", text])
            pair.good_room()
            expected = {kind: count + len(texts) for kind, count in before.items()}
            wait_until(lambda: dropped_frames(pair) == expected, lambda: f"{dropped_frames(pair)}, not {expected}")
    # Beyond max_message_bytes the connection ends; the socket connects again by itself.
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(pair.prefill.endpoint)  # type: ignore[attr-defined]
        dealer.send(bytes(2 << 20))
        pair.good_room()


def dropped_frames(pair: Pair) -> dict[str, int]:
    """What prefill has counted of frames that are none of ours."""
    dropped = pair.prefill.snapshot()["control"]["dropped"]
    return {kind: dropped[kind] for kind in ("not_two_frames", "not_understood")}


def packets(pair: Pair, stranger: Stranger) -> list[msg.Packet]:
    """Well-formed, and from nobody that prefill knows."""
    me: dict[str, Any] = {"sender": stranger.instance_id, "receiver": pair.prefill.instance_id, "session": 7}  # type: ignore[attr-defined]
    failure = msg.WireFailure("transfer", "peer_lost", "so I say", "prefill", True, "x", "y")
    messages: list[msg.Message] = [
        msg.Announce(1, 1), msg.Abort(1, 1, failure), msg.Concluded(1, 1, None), msg.Lease([1, 2, 3]), msg.Bound(1, 1, 1),
        msg.Metadata(1, 1, msg.WireIndices(2**40, b""), {}, None, 0, 1), msg.Failed(1, 1, failure, True),
        msg.Quiesced(1, 1), msg.SessionQuiesced(9),
    ]  # fmt: skip
    return [
        msg.Data(**me, seq=1, ack=0, messages=messages),
        msg.Ping(**me, number=1, ack=0, endpoint=stranger.endpoint),
        msg.Ping(**me, number=1, ack=0, endpoint="tcp://127.0.0.1:1"),
        msg.Ping(**me, number=1, ack=0, endpoint="inproc://x"),
        msg.Pong(**me, number=1, ack=0, stalled_s=0.0),
        msg.Bye(**me, quiescent=True),
        msg.Refuse(**me, failure=failure),
        msg.Reset(**me, about=pair.decode.instance_id),  # type: ignore[attr-defined]
        msg.Reset(**me, about=pair.prefill.instance_id),  # type: ignore[attr-defined]
    ]


def test_packets_of_nobody_we_know_change_nothing(pair: Pair):
    with Stranger() as stranger, pair.alongside():
        before = pair.prefill.snapshot()["dropped"].get("stale_packets", 0)
        for packet in packets(pair, stranger):
            for manager in (pair.prefill, pair.decode):
                stranger.send(manager, msgspec.structs.replace(packet, receiver=manager.instance_id))  # type: ignore[attr-defined]
                stranger.send(manager, packet)
        reset = stranger.receive(msg.Reset)  # the ping of a stranger is answered
        assert reset.about in (pair.prefill.instance_id, pair.decode.instance_id)  # type: ignore[attr-defined]
        wait_until(lambda: pair.prefill.snapshot()["dropped"].get("stale_packets", 0) >= before + 9, "the count")
        pair.good_room()


def test_a_peer_that_shook_hands_and_then_talks_nonsense(pair: Pair):
    """Pages that are not there, lives that never were, a descriptor that leads nowhere: its own rooms fail, no others."""
    with Stranger() as stranger, pair.alongside():
        hello = stranger.hello(pair.prefill, RankMemory(SHAPE).args(), rooms=[500])
        stranger.send(pair.prefill, hello)
        welcome = stranger.receive(msg.Welcome)
        me: dict[str, Any] = {"sender": stranger.instance_id, "receiver": welcome.sender, "session": hello.session}
        sender = pair.sender(500, [8, 9])
        pages = msg.WireIndices(2, struct.pack("<QQ", 1, 2**50))
        nonsense: list[msg.Message] = [
            msg.Announce(500, 1), msg.Announce(501, 2),
            msg.Metadata(500, 1, pages, {}, None, 0, 1), msg.Metadata(501, 2, msg.WireIndices(3, b"12"), {}, None, 0, 1),
            msg.Concluded(500, 77, None), msg.Lease(list(range(1, 5_000))), msg.Quiesced(500, 1), msg.Bound(500, 1, 1),
        ]  # fmt: skip
        stranger.send(pair.prefill, msg.Data(**me, seq=1, ack=0, messages=nonsense))
        wait_until(lambda: sender.poll() is KVPoll.Failed, "the nonsense")
        failure: Any = sender.failure()
        assert failure.code is FailureCode.INVALID_REQUEST
        assert "1125899906842624" in failure.message
        sender.clear()
        # Good page numbers, but nobody behind them: the transport can't get there.
        sender = pair.sender(600, [8, 9])
        sender.send([8, 9])
        real = msg.Metadata(600, 3, msg.WireIndices.of(np.array([1, 2], np.uint64)), {}, None, 0, 1)
        stranger.send(pair.prefill, msg.Data(**me, seq=len(nonsense) + 1, ack=0, messages=[msg.Announce(600, 3), real]))
        wait_until(lambda: sender.poll() is KVPoll.Failed, "a transfer that goes nowhere")
        failure = sender.failure()
        assert failure.code in (FailureCode.TRANSPORT_ERROR, FailureCode.PEER_LOST), failure
        sender.clear()
        pair.good_room()
        stranger.send(pair.prefill, msg.Bye(**me, quiescent=True))


def test_a_room_number_that_belongs_to_someone_else(pair: Pair):
    """A second decode rank asks for a room that another one is being served: it is refused, and the first does not notice."""
    receiver, sender = pair.receiver(900), pair.sender(900, [1, 2])
    receiver.send_metadata([3, 4])
    wait_until(lambda: sender.poll() is KVPoll.WaitingForInput, "the first one")
    with Stranger() as stranger:
        hello = stranger.hello(pair.prefill, RankMemory(SHAPE).args(), rooms=[900])
        stranger.send(pair.prefill, hello)
        me: dict[str, Any] = {
            "sender": stranger.instance_id,
            "receiver": stranger.receive(msg.Welcome).sender,
            "session": hello.session,
        }
        late = msg.Metadata(900, 1, msg.WireIndices.of(np.array([5, 6], np.uint64)), {}, None, 0, 1)
        stranger.send(pair.prefill, msg.Data(**me, seq=1, ack=0, messages=[msg.Announce(900, 1), late]))
        answer = stranger.receive_message(msg.Failed)
        assert answer.failure.code == "duplicate_room"
        stranger.send(pair.prefill, msg.Bye(**me, quiescent=True))
    sender.send([1, 2])
    assert_success(sender, receiver)
    assert pair.target.holds(pair.seed, 900, [3, 4])
