"""Foreign, broken and hostile traffic on every socket, while good traffic is served.

KV_CORE_FUZZ_MESSAGES=100000 KV_CORE_FUZZ_SEED=7 pytest core/tests/control/test_fuzz.py
"""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic

import zmq

from core.tests.control.support import LIMIT_S, MAX_BYTES, frames, lost, opened, poll_until, refused
from kv_core.runtime.control import ControlChannel, Incoming

MESSAGES = int(os.environ.get("KV_CORE_FUZZ_MESSAGES", "2000"))
GOOD_EVERY = 50

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
HTTP = b"GET /route?engine_rank=-1 HTTP/1.1\r\nHost: prefill:8998\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n"
TLS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def command(name: bytes, body: bytes = b"") -> bytes:
    data = bytes([len(name)]) + name + body
    return b"\x04" + bytes([len(data)]) + data if len(data) < 256 else b"\x06" + struct.pack(">Q", len(data)) + data


def metadata(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value


def ready(rng: random.Random) -> bytes:
    kinds = (b"DEALER", b"ROUTER", b"REQ", b"PUB", b"NONSENSE", b"")
    body = metadata(b"Socket-Type", rng.choice(kinds)) + metadata(b"Identity", rng.randbytes(rng.randrange(0, 300)))
    return command(b"READY", body[: rng.choice((len(body), rng.randrange(len(body) + 1)))])


def frame(rng: random.Random) -> bytes:
    data = rng.randbytes(rng.choice((0, 1, 5, 60, 300, 5_000)))
    length = rng.choice((len(data), len(data), len(data) + 1, 0, 2**63, 2**64 - 1, MAX_BYTES + 1, rng.randrange(2**64)))
    flags = rng.choice((0, 0, 1, 1, 4, rng.randrange(256)))
    if rng.random() < 0.5:
        return bytes([flags & ~2, min(length, 255)]) + data
    return bytes([flags | 2]) + struct.pack(">Q", length) + data


def session(rng: random.Random) -> bytes:
    """What a peer would say that keeps to ZMTP 3.1 for a while."""
    said = GREETING + ready(rng)
    for _ in range(rng.randrange(6)):
        said += rng.choice((
            frame(rng), command(b"PING", rng.randbytes(rng.randrange(2, 30))), command(b"PONG", rng.randbytes(rng.randrange(20))),
            command(b"SUBSCRIBE", b"x"), command(b"ERROR", b"\x03400"), command(rng.randbytes(5), rng.randbytes(9)), ready(rng),
        ))  # fmt: skip
    return said


RAW: tuple[Callable[[random.Random], bytes], ...] = (
    lambda rng: rng.randbytes(1),
    lambda rng: rng.randbytes(rng.randrange(2, 4_000)),
    lambda _: HTTP,
    lambda rng: TLS + rng.randbytes(500),
    lambda rng: b"\xff" + rng.randbytes(rng.randrange(80)),
    lambda rng: b"\xff" + struct.pack(">Q", rng.randrange(2**64)) + b"\x7f" + bytes([rng.randrange(256)]) + rng.randbytes(60),
    lambda rng: GREETING[: rng.randrange(len(GREETING))],
    lambda rng: GREETING[:10] + bytes([rng.randrange(4)]) + GREETING[11:] + rng.randbytes(100),
    lambda rng: GREETING[:12] + rng.choice((b"PLAIN", b"CURVE", b"NULLX")).ljust(20, b"\0") + bytes(32) + rng.randbytes(99),
    lambda _: b"",
    session,
    session,
    session,
)  # fmt: skip


@contextmanager
def seeded(test: str) -> Iterator[random.Random]:
    """A generator whose seed is shown when the test fails."""
    seed = int(os.environ.get("KV_CORE_FUZZ_SEED", str(random.SystemRandom().randrange(2**32))))
    try:
        yield random.Random(seed)
    except BaseException:
        print(f"\nrepeat with: KV_CORE_FUZZ_SEED={seed} KV_CORE_FUZZ_MESSAGES={MESSAGES} pytest {__file__} -k {test}")
        raise


@contextmanager
def sockets() -> Iterator[Callable[[int], zmq.Socket[bytes]]]:
    """Makes sockets in a context of their own, and closes them."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made: list[zmq.Socket[bytes]] = []

    def make(kind: int) -> zmq.Socket[bytes]:
        made.append(context.socket(kind))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.close(0)
        context.term()


def exchange(channel: ControlChannel, good: ControlChannel, text: bytes) -> list[Incoming]:
    """One good frame must come through; what else came in."""
    assert good.send(channel.endpoint, text)
    return poll_until(channel, lambda got: text in frames(got))


def deliver(port: int, data: bytes, rng: random.Random) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
        try:
            cut = rng.randrange(len(data) + 1)
            for part in (data[:cut], data[cut:]):
                connection.sendall(part)
            if rng.random() < 0.3:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif rng.random() < 0.2:
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(0.05)
                connection.recv(100)
        except OSError:
            return  # the channel has hung up, as it may


def test_raw_traffic_on_the_listening_socket() -> None:
    with seeded("raw_traffic") as rng, opened() as channel, opened() as good:
        port = int(channel.endpoint.rpartition(":")[2])
        threads = threading.active_count()
        for n in range(MESSAGES):
            deliver(port, rng.choice(RAW)(rng), rng)
            if n % GOOD_EVERY == 0:
                exchange(channel, good, b"good %d" % n)
        assert lost(exchange(channel, good, b"last") + good.poll(0)) == []
        assert threading.active_count() == threads
        assert good.snapshot()["established"] == 1


def random_parts(rng: random.Random) -> list[bytes]:
    return [rng.randbytes(rng.choice((0, 1, 30, 3_000))) for _ in range(rng.randrange(1, 21))]


def test_frames_of_other_shapes_are_dropped_and_counted() -> None:
    dropped = 0
    with seeded("other_shapes") as rng, opened() as channel, opened() as good, sockets() as make:
        for first in range(0, MESSAGES, 500):
            dealer = make(zmq.DEALER)
            dealer.setsockopt(zmq.ROUTING_ID, b"peer %d" % first + bytes(rng.randrange(200)))
            dealer.connect(channel.endpoint)
            messages = [random_parts(rng) for _ in range(min(500, MESSAGES - first))]
            for parts in messages:
                dealer.send_multipart(parts)
            expected = [parts[0] for parts in messages if len(parts) == 1]
            dropped += len(messages) - len(expected)
            got = exchange(channel, good, b"good")
            end = monotonic() + LIMIT_S
            while len(got) < len(expected) + 1 or channel.snapshot()["dropped"]["not_two_frames"] < dropped:
                assert monotonic() < end
                got += channel.poll(0.05)
            taken = frames(got)
            taken.remove(b"good")
            assert taken == expected
            dealer.close(0)
        assert channel.snapshot()["dropped"]["not_two_frames"] == dropped


def test_other_kinds_of_sockets_are_harmless() -> None:
    with opened() as channel, opened() as good, sockets() as make:
        for kind in (zmq.REQ, zmq.PUSH, zmq.PUB, zmq.SUB, zmq.PAIR, zmq.XSUB, zmq.REP, zmq.PULL):
            make(kind).connect(channel.endpoint)
            assert frames(exchange(channel, good, b"good %d" % kind)) == [b"good %d" % kind]


def test_hostile_servers_on_the_connecting_side() -> None:
    """Endpoints come from the network: whoever listens there may say anything, hang up or not."""
    with (
        seeded("hostile_servers") as rng, socket.create_server(("127.0.0.1", 0), backlog=64) as server,
        opened() as channel, opened() as good, ExitStack() as held_open,
    ):  # fmt: skip
        server.settimeout(0.02)
        endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        for n in range(min(MESSAGES, 20_000) // 10):
            got = answer_once(server, channel, endpoint, rng.choice(RAW)(rng), held_open)
            if rng.random() < 0.7:
                held_open.close()
            if rng.random() < 0.3:
                channel.disconnect(endpoint)
            got += exchange(channel, good, b"good %d" % n) if n % GOOD_EVERY == 0 else channel.poll(0)
            assert refused(got) == []


def answer_once(
    server: socket.socket, channel: ControlChannel, endpoint: str, answer: bytes, held_open: ExitStack
) -> list[Incoming]:
    """Send until the channel connects, and give it this answer."""
    got: list[Incoming] = []
    end = monotonic() + LIMIT_S
    while True:
        assert monotonic() < end
        channel.send(endpoint, b"hello")
        got += channel.poll(0)
        try:
            connection, _ = server.accept()
        except TimeoutError:
            # A connection that is held open takes frames and gives nothing: the channel can't know.
            held_open.close()
            continue
        held_open.enter_context(connection)
        with suppress(ConnectionError):
            connection.sendall(answer)
        return got
