"""Random messages for each socket and route: from bytes that mean nothing to packets that are nearly right.

Each function here runs in a process of its own, sends so many messages from a seed, and returns what it saw.
"""

from __future__ import annotations

import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import zmq

from kv_core.protocol import messages as msg
from kv_fake.wire import ACK_BYTES, Ack, Descriptor, Header, Preamble, Purpose, segment_table

LIMIT_S = 60.0
SEVERAL_PARTS = "several parts"
ALIEN = 1 << 40
"""From here on are the room numbers of strangers: whose numbers are used by the good traffic could do it harm."""
EDGES = (0, 1, 2, 255, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63))
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
HTTP = b"GET /route HTTP/1.1\r\nHost: x\r\n\r\n"
TLS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@dataclass(frozen=True)
class Acquaintance:
    """What a stranger knows of a rank that took him for a peer: its instance, his own session with it, his endpoint."""

    endpoint: str
    instance_id: str
    role: str
    me: str
    session: int
    my_endpoint: str
    introduction: bytes
    descriptor: bytes


def connect(port: int) -> socket.socket:
    """A TCP connection to this machine."""
    return socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)


def hang_up(rng: random.Random, connection: socket.socket) -> None:
    """In order, or with a reset."""
    if rng.random() < 0.3:
        with suppress(OSError):  # hung up already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


# -- control socket ----------------------------------------------------------------------------------------------------


def raw(rng: random.Random) -> bytes:
    """Something that is no ZMTP, or that begins like it."""
    junk = rng.randbytes(rng.choice((0, 1, 9, 64, 700)))
    ready = b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    return rng.choice(
        (
            junk,
            HTTP,
            TLS + junk,
            b"\xff" + junk,
            GREETING[: rng.randrange(64)],
            GREETING + junk,
            GREETING + ready + junk,
        )
    )


def flipped(rng: random.Random, data: bytes) -> bytes:
    """With some bytes changed, cut short, or with something behind it."""
    kind = rng.randrange(4)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        return data + rng.randbytes(rng.randrange(1, 20))
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


class Packets:
    """Makes packets that are nearly right: of a stranger's session, of others', of nobody's."""

    def __init__(self, rng: random.Random, known: Acquaintance) -> None:
        self._rng = rng
        self._known = known
        self._encoder = msgspec.msgpack.Encoder()
        self._introduction = msgspec.msgpack.decode(known.introduction, type=msg.Introduction)
        self._seq = 0
        self._greetings = 0

    def make(self) -> bytes:
        """The next one."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.35:
            return self._in_session()
        packet = self._foreign()
        data = self._encoder.encode(packet)
        return flipped(rng, data) if kind < 0.7 or (isinstance(packet, msg.Hello) and self._greetings > 400) else data

    def _in_session(self) -> bytes:
        messages = [self._message() for _ in range(self._rng.randrange(1, 4))]
        seq = self._seq + 1
        if self._rng.random() < 0.1:
            seq = self._rng.choice((0, seq + 1, seq + 5_000, 2**63 - 1, self._rng.randrange(1, seq + 1)))
        else:
            self._seq += len(messages)
        known = self._known
        # Nothing is ever acknowledged that was not sent: the one who answers for the stranger does that.
        packet = msg.Data(
            sender=known.me, receiver=known.instance_id, session=known.session, seq=seq, ack=0, messages=messages
        )  # fmt: skip
        return self._encoder.encode(packet)

    def _message(self) -> msg.Message:
        rng = self._rng
        room, life = ALIEN + rng.randrange(5_000), rng.randrange(1, 200_000)
        failure = msg.WireFailure(
            "transfer", rng.choice(("timeout", "nonsense", "")), "x" * rng.randrange(99), "fabric", False, "", ""
        )
        count = rng.randrange(9)
        items = msg.WireIndices(rng.choice((count, count, 0, 7, 2**40)), rng.randbytes(rng.choice((4, 8)) * count))
        if self._known.role == "decode":
            return rng.choice((
                msg.Bound(room, life, life), msg.Failed(room, life, failure, rng.random() < 0.5), msg.Quiesced(room, life),
                msg.SessionQuiesced(rng.randrange(2**63)), msg.Lease([life] * count), self._done(room, life),
                msg.Announce(room, life), msg.Abort(room, life, failure),
            ))  # fmt: skip
        return rng.choice((
            msg.Announce(room, life), msg.Lease([life] * count), msg.Abort(room, life, failure),
            msg.Metadata(room, life, items, {"mamba": items} if count == 3 else {}, rng.choice((None, 0, 2**63 - 1)), count, 1 + count),
            msg.Concluded(room, life, rng.choice((None, failure))), msg.Bound(room, life, life), self._done(room, life),
        ))  # fmt: skip

    def _done(self, room: int, life: int) -> msg.Done:
        rng = self._rng
        digest = msg.ChunkDigest(0, rng.randrange(9), -1, 2**31, {}, False, rng.getrandbits(63))
        return msg.Done(room, life, life, 3, 2**62, 1e11, "core", 2**62, [digest], [rng.randbytes(9)])

    def _foreign(self) -> Any:
        """Of another instance or session, or with values that no field takes."""
        rng, known = self._rng, self._known
        names = ("", "x" * rng.randrange(300), rng.randbytes(16).hex(), known.me, known.instance_id)
        head: dict[str, Any] = {
            "sender": rng.choice(names), "receiver": rng.choice((known.instance_id, known.instance_id, *names)),
            # Never the session that stands: it may be ended by whoever names it.
            "session": rng.choice((0, -1, 10**6 + rng.randrange(10**6), 2**63 - 1, 2**63, 2**64 - 1)),
            "version": rng.choice((1, 1, 1, 0, 2, 2**31)),
        }  # fmt: skip
        places = (
            known.my_endpoint,
            known.my_endpoint,
            "tcp://127.0.0.1:1",
            "tcp://:0",
            "ipc:///x",
            "tcp://[::1]:99999",
            "",
        )
        edge = rng.choice(EDGES)
        kind = rng.randrange(9)
        if kind == 0:
            self._greetings += 1
            introduction = msgspec.structs.replace(
                self._introduction, endpoint=rng.choice(places),
                descriptor=rng.choice((b"", rng.randbytes(40), known.descriptor)),
            )  # fmt: skip
            return msg.Hello(
                **head | {"sender": rng.randbytes(16).hex()}, introduction=introduction, rooms=[ALIEN + 1, ALIEN]
            )
        return (
            msg.Bye(**head, quiescent=True), msg.Reset(**head, about=rng.choice(names)),
            msg.Ping(**head, number=edge, ack=edge, endpoint=rng.choice(places)),
            msg.Pong(**head, number=edge, ack=edge, stalled_s=rng.choice((0.0, 1e300, -1.0, float("nan")))),
            msg.Refuse(**head, failure=msg.WireFailure("", "", "", "", True, "", "")),
            msg.Welcome(**head, introduction=self._introduction),
            msg.Data(**head, seq=edge, ack=edge, messages=[self._message()]),
            msg.Data(**head, seq=1, ack=0, messages=[msg.Announce(edge, edge)]),
        )[kind - 1]  # fmt: skip


def control(seed: int, count: int, known: Acquaintance) -> dict[str, int]:
    """To a rank's control socket."""
    rng = random.Random(f"{seed} control {known.role}")
    packets = Packets(rng, known)
    sent: Counter[str] = Counter()
    port = int(known.endpoint.rpartition(":")[2])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    session = _dealer(context, known)  # one for what has an order
    try:
        while sum(sent.values()) < count:
            for _ in range(5):
                with connect(port) as connection, suppress(OSError):  # hung up on, as may be
                    connection.sendall(raw(rng))
                sent["raw connections"] += 1
            dealer = _dealer(context, known)
            for _ in range(20):
                parts = [rng.randbytes(rng.choice((0, 1, 30, 900))) for _ in range(rng.randrange(1, 21))]
                dealer.send_multipart(parts)
                sent["one part" if len(parts) == 1 else SEVERAL_PARTS] += 1
                dealer.send(rng.randbytes(rng.randrange(400)))
                sent["junk"] += 1
            dealer.close(int(1_000 * LIMIT_S))
            for _ in range(55):
                session.send(packets.make())
                sent["packets"] += 1
    finally:
        session.close(int(1_000 * LIMIT_S))
        context.term()
    return dict(sent)


def _dealer(context: zmq.Context[zmq.Socket[bytes]], known: Acquaintance) -> zmq.Socket[bytes]:
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.SNDTIMEO, int(1_000 * LIMIT_S))
    dealer.connect(known.endpoint)
    return dealer


# -- data port ---------------------------------------------------------------------------------------------------------


def data(seed: int, count: int, descriptor: bytes, regions: int) -> dict[str, int]:
    """To the software NIC's port; strangers know its secret, as peers do, but never write where they may."""
    rng = random.Random(f"{seed} data {regions}")
    where = Descriptor.unpack(descriptor)
    sent: Counter[str] = Counter()
    while sum(sent.values()) < count:
        for _ in range(8):
            token = where.token if rng.random() < 0.7 else rng.randbytes(16)
            start = Preamble(
                token, "stranger", rng.randrange(2**63), rng.choice((0, 1, 1, 3, 99)), rng.randrange(2**63)
            ).pack()
            junk = rng.randbytes(rng.choice((0, 1, 31, 33, 200)))
            said = rng.choice((junk, HTTP, start[: rng.randrange(len(start))], start + junk))
            connection = connect(where.port)
            with suppress(OSError):  # hung up on, as may be
                connection.sendall(said)
            hang_up(rng, connection)
            sent["raw connections"] += 1
        sent["refused frames"] += _frames(rng, where, regions)
    return dict(sent)


def _frames(rng: random.Random, where: Descriptor, regions: int) -> int:
    """A connection with frames that point outside of what is registered: each is refused, and the next one is read."""
    frames = 92
    with connect(where.port) as connection:
        connection.sendall(Preamble(where.token, "stranger", 1, Purpose.DATA, rng.randrange(1, 2**63)).pack())
        said = b"".join(_frame(rng, number, regions) for number in range(frames))
        connection.sendall(said)
        answer = _receive(connection, 1 + frames * ACK_BYTES)
        acks = Ack.unpack_all(answer[1:])
        if [ack.transfer for ack in acks] != list(range(frames)) or not all(ack.refused for ack in acks):
            raise AssertionError(f"not every frame was refused: {acks[:5]}")
        if rng.random() < 0.5:
            connection.sendall(rng.randbytes(rng.randrange(1, 200)))
    return frames


def _frame(rng: random.Random, number: int, regions: int) -> bytes:
    segments = rng.randrange(1, 4)
    lengths = np.array([rng.randrange(1, 33) for _ in range(segments)], np.uint64)
    outside = rng.choice((regions, regions + 1, 2**31, 2**63, 2**64 - 1))
    if rng.random() < 0.5:
        region, offset = np.full(segments, outside, np.uint64), np.zeros(segments, np.uint64)
    else:
        edge = rng.choice((2**40, 2**63 - 1, 2**64 - 1, 2**64 - 33))
        region, offset = np.zeros(segments, np.uint64), np.full(segments, edge, np.uint64)
    payload = int(lengths.sum())
    return Header(number, segments, payload).pack() + segment_table(region, offset, lengths) + rng.randbytes(payload)


def _receive(connection: socket.socket, count: int) -> bytes:
    got = bytearray()
    while len(got) < count:
        part = connection.recv(count - len(got))
        if not part:
            raise AssertionError(f"{len(got)} bytes of answers came, {count} were expected")
        got += part
    return bytes(got)


# -- bootstrap routes --------------------------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (None, True, -1, 0.5, 2**63, 2**64, 10**40, "", "x" * 300, "\0", [], [[]], {}, {"a": 1})
GOOD_ONES = 16
"""Less than so many good requests come before one that may be anything."""
METHODS = ("GET", "PUT", "POST", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE", "get", "XYZ")


def route(seed: int, count: int, port: int, method: str, path: str) -> dict[str, int]:
    """To one route of a bootstrap server; several good or bad requests follow each other on a connection."""
    rng = random.Random(f"{seed} {method} {path}")
    seen: Counter[str] = Counter()
    maker = _REQUESTS[(method, path)]
    while sum(seen.values()) < count:
        # A refusal ends its connection, so what is good goes first, and one that may be anything goes last.
        batch = [] if method == "PUT" else [maker(rng, True) for _ in range(rng.randrange(GOOD_ONES))]
        last, whole = _last(rng, method, path, maker)
        with connect(port) as connection:
            answers = _answers(connection, b"".join(batch), len(batch), last, whole)
        seen.update(answers)
        seen["unanswered"] += len(batch) + 1 - len(answers)
        if "500" in answers or len(answers) < len(batch):
            raise AssertionError(f"{method} {path} answered {answers} to {(*batch, last)}"[:2_000])
    return dict(seen)


def _answers(connection: socket.socket, good: bytes, owed: int, last: bytes, whole: bool) -> list[str]:
    """The statuses of the answers. The last request gets all the time it wants if it is whole, else nothing follows it."""
    answers = b""
    with suppress(ConnectionError):  # hung up on in the middle, as may be
        connection.sendall(good)
        while answers.count(b"HTTP/1.1 ") < owed and (part := connection.recv(1 << 16)):
            answers += part
        connection.sendall(last)
        if not whole:
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(1 << 16):
            answers += part
            if answers.count(b"HTTP/1.1 ") > owed:
                break
    return [answer[:3].decode("ascii", "replace") for answer in answers.split(b"HTTP/1.1 ")[1:]]


def _request(method: str, path: str, body: Any = b"", kind: str = "application/json", length: object = None) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = len(content) if length is None else length
    return (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n".encode()
        + content
    )


def _registration(rng: random.Random, good: bool) -> dict[str, Any]:
    """Of another shape than the one that is served: else it would rightly take its place."""
    body: dict[str, Any] = {
        "attn_tp_rank": rng.randrange(64), "attn_tp_size": 64, "pp_rank": 0, "pp_size": 3, "attn_cp_rank": 0,
        "attn_cp_size": 1, "attn_dp_rank": 0, "attn_dp_size": 1, "rank_ip": "127.0.0.1", "rank_port": 1, "page_size": 999,
        "kv_cache_dtype": "x", "kv_layout": "y", "instance_id": rng.randbytes(8).hex(), "backend": "z", "protocol_version": 9,
    }  # fmt: skip
    if not good:
        key = rng.choice(list(body))
        if rng.random() < 0.3:
            del body[key]
        else:
            body[key] = rng.choice(ODD)
        body["pp_size"] = 3
    return body


def _put(rng: random.Random, good: bool) -> bytes:
    return _request("PUT", "/route", _registration(rng, good))


def _delete(rng: random.Random, good: bool) -> bytes:
    return _request("DELETE", "/route", {"instance_id": rng.randbytes(16).hex() if good else rng.choice(ODD)})


def _get(rng: random.Random, good: bool) -> bytes:
    keys = ("target_tp_rank", "target_pp_rank", "prefill_cp_rank", "prefill_dp_rank")
    numbers = ("-1", "0") if good else ("-1", "0", "-2", str(2**63), "x", "%00", "%ff", "", "1e3", "9" * 300)
    number = rng.choice(numbers)
    return _request("GET", "/route?" + "&".join(f"{key}={number if good else rng.choice(numbers)}" for key in keys))


def _register(rng: random.Random, good: bool) -> bytes:
    room: Any = ALIEN + rng.randrange(10_000)
    return _request("POST", "/register_dp_rank", {"bootstrap_room": room if good else rng.choice(ODD), "dp_rank": 0})


def _query(rng: random.Random, good: bool) -> bytes:
    rooms: Any = [ALIEN + rng.randrange(10_000) for _ in range(rng.randrange(20))]
    return _request("POST", "/query_dp_ranks", {"bootstrap_rooms": rooms if good else rng.choice(ODD)})


def _health(rng: random.Random, good: bool) -> bytes:
    return _request("GET", "/health" if good else "/health" + rng.choice(("/", "?x=" + "y" * 500, "//", "%2f", "\x7f")))


_REQUESTS: dict[tuple[str, str], Callable[[random.Random, bool], bytes]] = {
    ("PUT", "/route"): _put, ("DELETE", "/route"): _delete, ("GET", "/route"): _get,
    ("POST", "/register_dp_rank"): _register, ("POST", "/query_dp_ranks"): _query, ("GET", "/health"): _health,
}  # fmt: skip
ROUTES = tuple(_REQUESTS)


def _last(
    rng: random.Random, method: str, path: str, maker: Callable[[random.Random, bool], bytes]
) -> tuple[bytes, bool]:
    """The last request on a connection, and whether it is one: whatever it says, an answer is owed then."""
    kind = rng.randrange(12)
    if kind < 5:
        return maker(rng, method == "PUT" and kind < 3), True
    good, junk = maker(rng, True), rng.randbytes(rng.randrange(300))
    if kind == 5:
        return good[: rng.randrange(len(good))], False
    if kind == 6:
        # A flipped goodbye must not become somebody else's.
        return (flipped(rng, good), False) if method != "DELETE" else (good[:-3] + b"\xff\xff}", True)
    return (
        (junk, False), (_request(method, path, b"{}", length=rng.choice((-1, 1, 3, 70_000, 2**63, "x", ""))), False),
        (_request(rng.choice(METHODS), path, junk), True), (_request(method, path, b"[" * 2_000, "text/plain"), True),
        (_request(method, path + "/" + "a" * rng.choice((1, 9_000)), junk), True),
    )[kind - 7]  # fmt: skip
