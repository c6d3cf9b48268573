"""Random messages on every route: each gets a typed refusal or is cut off, and nothing else notices.

``KV_CORE_FUZZ_MESSAGES`` sets how many (default 2,000) and ``KV_CORE_FUZZ_SEED`` repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
from collections import Counter
from typing import Any

import pytest

from core.tests.bootstrap.support import LIMIT_S, RANK_ZERO, Collector, registration, until, wire
from kv_core.runtime.bootstrap import BootstrapClient, HealthReport, parse_address
from kv_core.runtime.bootstrap.errors import BootstrapConnectionError, ConnectionTrouble

MESSAGES = int(os.environ.get("KV_CORE_FUZZ_MESSAGES", "2000"))
SEED = int(os.environ.get("KV_CORE_FUZZ_SEED") or random.SystemRandom().randrange(2**32))
ROUTES = [
    ("PUT", "/route"), ("DELETE", "/route"), ("GET", "/route"), ("POST", "/register_dp_rank"),
    ("POST", "/query_dp_ranks"), ("GET", "/health"),
]  # fmt: skip
WRONG: list[Any] = [
    None,
    True,
    False,
    -1,
    0.5,
    1e308,
    2**63,
    2**64,
    10**40,
    "",
    "x" * 300,
    "\x00",
    "0",
    [],
    [[]],
    {},
    {"a": 1},
]
METHODS = ["GET", "PUT", "POST", "DELETE", "HEAD", "PATCH", "OPTIONS", "TRACE", "get", "CONNECT"]
TYPES = ["application/json", "text/plain", "application/octet-stream", "application/json; charset=utf-16", "", "/", "é"]


def request(method, path, body=b"", content_type="application/json", length=None, extra=b""):
    size = len(body) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {size}\r\n"
    head += "Connection: close\r\n"
    return head.encode() + extra + b"\r\n" + body


def nested(rng, depth=0):
    """Random JSON."""
    kind = rng.randrange(6 if depth < 4 else 4)
    if kind < 4:
        return rng.choice([rng.choice(WRONG), rng.getrandbits(rng.randrange(1, 200)), rng.random(), str(rng.random())])
    if kind == 4:
        return [nested(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {str(rng.random()): nested(rng, depth + 1) for _ in range(rng.randrange(5))}


def bad_registration(rng):
    """A registration with one impossible value, or without one of the keys that it needs."""
    message = wire(instance_id="fuzz")
    key = rng.choice([key for key in message if key not in ("progress_age_s", "core_version", "backend_version")])
    if rng.random() < 0.2:
        del message[key]
    else:
        # 0 and False would be fine for a rank, and text for a name: these are not.
        message[key] = rng.choice([None, True, -1, 0.5, 1e308, 2**63, 10**40, [], {}, ""])
    return json.dumps(message).encode()


def random_bytes(rng, limit=400):
    return rng.randbytes(rng.randrange(limit))


def cut_or_flipped(rng):
    method, path = rng.choice(ROUTES)
    # Of another instance than the one that is registered: its DELETE would be quite in order.
    data = bytearray(request(method, path, json.dumps(wire(page_size=0, instance_id="fuzz")).encode()))
    if rng.random() < 0.5:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.randrange(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def query(rng):
    numbers = ["-1", "0", "1", "-2", "65536", str(2**63), "x", "%00", "%ff", "", " 1", "1e3", "+1"]
    keys = ["target_tp_rank", "target_pp_rank", "prefill_cp_rank", "prefill_dp_rank", "engine_rank", "%zz"]
    return "&".join(f"{rng.choice(keys)}={rng.choice(numbers)}" for _ in range(rng.randrange(8)))


def chunked(rng):
    body = b"".join(b"%x\r\n%s\r\n" % (size, rng.randbytes(size)) for size in (rng.randrange(1, 50) for _ in range(4)))
    if rng.random() < 0.5:
        body = body[: rng.randrange(len(body))]
    head = b"PUT /route HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
    return head + body + b"0\r\n\r\n"


WHOLE = {
    "random body", "random JSON", "bad registration", "bad room", "bad rooms", "query", "content type", "large",
}  # fmt: skip
"""Kinds that are whole requests in good HTTP: each of them must be answered."""


def message(rng):
    """One message: a name for the kind, and its bytes."""
    method, path = rng.choice(ROUTES)
    makers = {
        "random bytes": lambda: random_bytes(rng),
        "random bytes after a good line": lambda: f"{method} {path} HTTP/1.1\r\n".encode() + random_bytes(rng),
        "random body": lambda: request(method, path, random_bytes(rng)),
        "random JSON": lambda: request(method, path, json.dumps(nested(rng)).encode()),
        "bad registration": lambda: request("PUT", "/route", bad_registration(rng)),
        "cut or flipped": lambda: cut_or_flipped(rng),
        "bad room": lambda: request(
            "POST", "/register_dp_rank", json.dumps({"bootstrap_room": rng.choice(WRONG), "dp_rank": 0}).encode()
        ),
        "bad rooms": lambda: request(
            "POST", "/query_dp_ranks", json.dumps({"bootstrap_rooms": [1] * rng.randrange(4_000)}).encode()
        ),
        "query": lambda: request("GET", f"/route?{query(rng)}"),
        "method or path": lambda: request(rng.choice(METHODS), rng.choice(["/route", "/health", "/", "*", "//x", "x"])),
        "content type": lambda: request("PUT", "/route", bad_registration(rng), rng.choice(TYPES)),
        "wrong length": lambda: request(method, path, b"{}", length=rng.choice([-1, 0, 1, 3, 70_000, 2**63, "x", ""])),
        "large": lambda: request("PUT", "/route", b" " * rng.choice([65_535, 65_537, 300_000])),
        "headers": lambda: request(method, path, extra=b"X: y\r\n" * rng.choice([1, 200]) + random_bytes(rng, 20_000)),
        "chunked": lambda: chunked(rng),
        "several": lambda: request("GET", "/health") * rng.randrange(1, 20) + random_bytes(rng),
    }
    kind = rng.choice(list(makers))
    return kind, makers[kind]()


def exchange(rng, place, kind, data):
    """Send, sometimes in pieces, sometimes hanging up at once; returns the answer's bytes, or None if not waited for."""
    answer = b""
    with socket.create_connection(place, timeout=LIMIT_S) as connection:
        try:
            middle = rng.randrange(len(data) + 1)
            connection.sendall(data[:middle])
            connection.sendall(data[middle:])
            if rng.random() < 0.1:
                # Close with a reset instead of an orderly end.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return None
            if kind not in WHOLE:
                # The server may be waiting for more: tell it that nothing will come. (It need not answer then.)
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                answer += part
        except TimeoutError:
            pytest.fail(f"the server neither answered nor hung up on {kind}: {data[:200]!r}")
        except OSError:
            # The server hangs up on what it can't read. That it never hangs is what the timeout above shows.
            return answer
    return answer


def check_answer(kind, answer):
    if not answer:
        assert answer is None or kind not in WHOLE, f"no answer to {kind}"
        return "none"
    status = int(answer.split()[1])
    assert status in (200, 400, 404, 405, 408, 409, 413, 415, 429, 503), answer[:300]
    if status != 200 and b"HTTP/1.1" not in answer[10:]:
        _, _, body = answer.partition(b"\r\n\r\n")
        assert not body or len(json.loads(body)["error"]) > 10, answer[:500]
    return str(status)


def timed_out(outcome):
    return isinstance(outcome, BootstrapConnectionError) and outcome.trouble is ConnectionTrouble.TIMEOUT


@pytest.mark.timeout(3_600)
def test_random_messages(server, service):
    told, probes = Collector(), Collector()
    service.register(server.address, registration, told)
    told.wait_count(1)
    service.watch(server.address, probes)
    probes.wait_count(1)
    before = BootstrapClient(server.address).route()
    rng = random.Random(SEED)
    place = parse_address(server.address)
    seen: Counter[str] = Counter()
    try:
        for number in range(MESSAGES):
            kind, data = message(rng)
            seen[check_answer(kind, exchange(rng, place, kind, data))] += 1
            if number % 500 == 0:
                assert BootstrapClient(server.address, LIMIT_S).route() == before
        until(lambda: server.snapshot()["connections"] == 0, "no connection is left")
        assert BootstrapClient(server.address, LIMIT_S).route() == before
        assert BootstrapClient(server.address, LIMIT_S).health().instances() == {RANK_ZERO: "instance-a"}
        assert told.outcomes() == [None]
        # A probe has an interval for its answer, which a busy machine may not have: silence now and then, nothing else.
        assert all(isinstance(outcome, HealthReport) or timed_out(outcome) for outcome in probes.outcomes())
        until(lambda: isinstance(probes.outcomes()[-1], HealthReport), "the server answers probes")
        assert seen["400"] > MESSAGES / 4, seen
        assert server.health()["alive"]
        assert server.snapshot()["exceptions"] == service.health()["exceptions"] == 0
    except BaseException:
        print(f"seed {SEED}; repeat: KV_CORE_FUZZ_SEED={SEED} KV_CORE_FUZZ_MESSAGES={MESSAGES} pytest {__file__}")
        raise
