"""The server, over real sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import suppress
from itertools import product
from multiprocessing.reduction import ForkingPickler

import pytest

from core.tests.bootstrap.support import (
    LIMIT_S,
    ROOT,
    ask,
    free_port,
    open_descriptors,
    own_threads,
    until,
    wire,
)
from kv_core.contract.failures import BootstrapError, InvalidConfig, NotPicklable
from kv_core.runtime.bootstrap import BootstrapServer, guard, parse_address
from kv_core.runtime.bootstrap.handlers import MAX_BODY_BYTES

CHUNKED = b"PUT /route HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
WHOLE = "/route?prefill_dp_rank=-1&prefill_cp_rank=-1&target_tp_rank=-1&target_pp_rank=-1"


def one(tp=0, pp=0, cp=0, dp=0):
    return f"/route?prefill_dp_rank={dp}&prefill_cp_rank={cp}&target_tp_rank={tp}&target_pp_rank={pp}"


def ended(connection):
    """Wait until the other side has ended the connection, in good order or with a reset."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def put(server, **changes):
    return ask(server.address, "PUT", "/route", wire(**changes))


def test_before_anybody_registered(server):
    status, answer = ask(server.address, "GET", "/route")
    assert (status, "no prefill rank" in answer["error"]) == (503, True)
    assert ask(server.address, "GET", one())[0] == 503
    status, answer = ask(server.address, "GET", "/health")
    assert status == 200
    assert answer == {"status": "waiting", "instance_id": server.instance_id, "ready": False, "ranks": []}


def test_one_rank_in_sglangs_words(server):
    status, answer = put(server)
    assert (status, answer["server_instance"]) == (200, server.instance_id)
    for path in ("/route", WHOLE):
        status, info = ask(server.address, "GET", path)
        assert status == 200
        assert {key: info[key] for key in ("attn_tp_size", "attn_cp_size", "dp_size", "pp_size", "page_size")} == {
            "attn_tp_size": 1, "attn_cp_size": 1, "dp_size": 1, "pp_size": 1, "page_size": 16,
        }  # fmt: skip
        assert (info["kv_cache_dtype"], info["follow_bootstrap_room"]) == ("bfloat16", False)
        assert [entry["instance_id"] for entry in info["ranks"]] == ["instance-a"]
    assert ask(server.address, "GET", one()) == (
        200,
        {"rank_ip": "127.0.0.1", "rank_port": 5555, "instance_id": "instance-a"},
    )


def test_readiness_is_the_set_of_ranks(server):
    sizes = {"attn_tp_size": 2, "pp_size": 2}
    places = list(product(range(2), range(2)))
    for tp, pp in places[:-1]:
        for _ in range(3):  # registering again is no further rank
            assert put(server, attn_tp_rank=tp, pp_rank=pp, instance_id=f"{tp}{pp}", **sizes)[0] == 200
        status, answer = ask(server.address, "GET", "/route")
        assert status == 503
        assert answer["missing_count"] == len(answer["missing_ranks"]) == 3 - places.index((tp, pp))
        assert ask(server.address, "GET", one())[0] == 503
    put(server, attn_tp_rank=1, pp_rank=1, instance_id="11", rank_port=11, **sizes)
    assert ask(server.address, "GET", "/route")[0] == 200
    assert ask(server.address, "GET", one(1, 1))[1]["rank_port"] == 11
    assert ask(server.address, "GET", one(2, 0))[0] == 404
    assert ask(server.address, "DELETE", "/route", {"instance_id": "01"}) == (200, {"status": "ok", "removed": 1})
    assert ask(server.address, "DELETE", "/route", {"instance_id": "01"}) == (200, {"status": "ok", "removed": 0})
    assert ask(server.address, "GET", "/route")[1]["missing_ranks"] == [[0, 1, 0, 0]]


def test_another_instance_at_the_same_address_is_refused(server):
    put(server)
    status, answer = put(server, page_size=1, backend="x", instance_id="b")
    assert status == 409
    assert "page_size: 16 here, 1 in the registration" in answer["error"]
    assert "backend: 'some' here, 'x' in the registration" in answer["error"]
    assert ask(server.address, "GET", one())[1]["instance_id"] == "instance-a"
    assert put(server, instance_id="b", rank_port=1)[0] == 200
    assert ask(server.address, "GET", one())[1] == {"rank_ip": "127.0.0.1", "rank_port": 1, "instance_id": "b"}
    status, answer = put(server)
    assert (status, "taken over" in answer["error"]) == (409, True)


def test_a_registration_that_is_not_renewed_is_dropped_by_the_timer():
    with BootstrapServer(port=0, registration_ttl_s=0.2) as server:
        put(server)
        until(lambda: server.snapshot()["registrations"] == 0, "the registration has lapsed without any request")
        assert not server.snapshot()["ready"]
        assert ask(server.address, "GET", "/route")[0] == 503
        assert put(server, page_size=99)[0] == 200


def test_health_knows_ages(server):
    put(server, progress_age_s=5.0)
    first = ask(server.address, "GET", "/health")[1]
    assert (first["status"], first["ready"]) == ("ok", True)
    assert (first["ranks"][0]["ranks"], first["ranks"][0]["instance_id"]) == ([0, 0, 0, 0], "instance-a")
    until(lambda: ask(server.address, "GET", "/health")[1]["ranks"][0]["age_s"] > 0.05, "the age grows")
    rank = ask(server.address, "GET", "/health")[1]["ranks"][0]
    assert rank["progress_age_s"] == pytest.approx(5.0 + rank["age_s"])


def test_rooms_and_their_dp_ranks(server):
    def register(room, rank):
        return ask(server.address, "POST", "/register_dp_rank", {"bootstrap_room": room, "dp_rank": rank})

    assert register(17, 3)[0] == 200  # before any rank is known the size isn't either
    assert register(2**63 - 1, 0)[0] == 200
    status, answer = ask(server.address, "POST", "/query_dp_ranks", {"bootstrap_rooms": [17, 18, 2**63 - 1]})
    assert (status, answer) == (200, {"17": 3, str(2**63 - 1): 0})
    put(server)
    status, answer = register(19, 3)
    assert (status, answer["error"]) == (400, "dp_rank is 3, must lie in 0..0")
    assert server.snapshot()["rooms"] == 2
    for room in (-1, 2**63, 2**64, 1.5, "17", None, True):
        status, answer = register(room, 0)
        assert (status, "bootstrap_room" in answer["error"]) == (400, True)
        assert ask(server.address, "POST", "/query_dp_ranks", {"bootstrap_rooms": [1, room]})[0] == 400
    assert ask(server.address, "POST", "/query_dp_ranks", {"bootstrap_rooms": [0] * 2_049})[0] == 400
    assert server.snapshot()["rooms"] == 2


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "sentence"),
    [
        ("GET", "/", None, {}, 404, "/health, /query_dp_ranks, /register_dp_rank, /route"),
        ("GET", "/route/", None, {}, 404, "no such path"),
        ("POST", "/route", {}, {}, 405, "PUT and DELETE and GET"),
        ("PUT", "/health", {}, {}, 405, "GET only"),
        ("PATCH", "/route", None, {}, 405, "takes"),
        ("BREW", "/route", None, {}, 400, "no request that the bootstrap server understands"),
        ("PUT", "/route", b"a=1", {"Content_Type": "application/x-www-form-urlencoded"}, 415, "application/json"),
        ("PUT", "/route", b"\x00" * 10, {}, 400, "malformed"),
        ("PUT", "/route", b"", {}, 400, "the body of PUT /route"),
        ("PUT", "/route", b" " * (MAX_BODY_BYTES + 1), {}, 413, "larger than 65536"),
        ("PUT", "/route", b"x" * 70, {"Content_Encoding": "gzip"}, 400, "malformed"),
        ("DELETE", "/route", {"instance_id": ""}, {}, 400, "instance_id"),
        ("GET", "/route?target_tp_rank=0", None, {}, 400, "prefill_dp_rank"),
        ("GET", one("x"), None, {}, 400, "target_tp_rank"),
        ("GET", one(-2), None, {}, 400, "-1..65535"),
        ("GET", one(2**63), None, {}, 400, "target_tp_rank"),
        ("GET", one("%D9%A1"), None, {}, 400, "target_tp_rank"),
        ("GET", one() + "&target_tp_rank=0", None, {}, 400, "2 times"),
    ],
)
def test_bad_requests_get_a_sentence(server, method, path, body, headers, status, sentence):
    put(server)
    before = server.snapshot()
    seen, answer = ask(server.address, method, path, body, **headers)
    assert seen == status
    assert sentence in answer["error"]
    assert ask(server.address, "GET", one())[0] == 200
    after = server.snapshot()
    assert (after["exceptions"], after["registrations"]) == (0, before["registrations"])


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),  # the begin of a TLS handshake
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(2_000)) + b"\r\n",
        b"PUT /route HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"PUT /route HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
        CHUNKED + b"zz\r\n{}",
        CHUNKED + b"1000\r\n" + b" " * 4096 + b"\r\n0\r\n\r\n",
    ],
)  # fmt: skip
def test_foreign_bytes_get_a_sentence_or_nothing(server, data):
    put(server)
    with socket.create_connection(parse_address(server.address), timeout=LIMIT_S) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):  # what it did not read it may hang up on
            while part := connection.recv(65_536):
                answer += part
    assert not answer or answer.split()[1].startswith(b"4"), answer[:200]
    assert not answer or b'"error"' in answer, answer[:500]
    assert ask(server.address, "GET", one())[0] == 200
    assert server.snapshot()["exceptions"] == 0


def test_a_chunked_body_is_bounded_too(server):
    with socket.create_connection(parse_address(server.address), timeout=LIMIT_S) as connection:
        connection.sendall(CHUNKED)
        answer = b"not yet"
        with suppress(BrokenPipeError, ConnectionResetError):  # it stops reading long before the end
            for _ in range(10_000):
                connection.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
            answer = connection.recv(65_536)
    assert answer == b"not yet" or b" 413 " in answer
    until(lambda: server.snapshot()["connections"] == 0, "the connection is gone")
    assert server.snapshot()["refused"] == 1


def test_idle_and_slow_connections_are_ended(monkeypatch):
    monkeypatch.setattr(guard, "IDLE_LIMIT_S", 0.2)
    with BootstrapServer(port=0) as server:
        host, port = parse_address(server.address)
        idle = socket.create_connection((host, port), timeout=LIMIT_S)
        slow = socket.create_connection((host, port), timeout=LIMIT_S)
        slow.sendall(b"PUT /route HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{")
        for connection in (idle, slow):
            with connection:
                assert ended(connection)
        until(lambda: server.snapshot()["connections"] == 0, "no connection is left")


def test_too_many_connections_end_the_one_that_is_idle_longest(monkeypatch):
    monkeypatch.setattr("kv_core.runtime.bootstrap.server.connection_limit", lambda: 8)
    with BootstrapServer(port=0) as server:
        put(server)
        place = parse_address(server.address)
        crowd = [socket.create_connection(place, timeout=LIMIT_S) for _ in range(40)]
        assert ask(server.address, "GET", one())[0] == 200
        assert server.snapshot()["connections"] <= 8
        for connection in crowd:
            connection.close()


def test_ipv6():
    try:
        server = BootstrapServer("::1", 0)
    except BootstrapError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    with server:
        assert server.address == f"[::1]:{server.port}"
        assert put(server, rank_ip="::1")[0] == 200
        assert ask(server.address, "GET", one())[1]["rank_ip"] == "::1"


def test_a_name_and_the_ipv6_wildcard_listen_on_every_address():
    for host in ("localhost", "::"):
        with BootstrapServer(host, 0) as server:
            assert put(server)[0] == 200
            assert ask(f"127.0.0.1:{server.port}", "GET", one())[0] == 200


def test_a_port_that_is_taken_and_other_addresses_that_cannot_be(server):
    before = open_descriptors()
    with pytest.raises(BootstrapError, match="another process listens there"):
        BootstrapServer(port=server.port)
    with pytest.raises(BootstrapError, match="no such address"):
        BootstrapServer("192.0.2.1", 0)
    with pytest.raises(BootstrapError, match=r"0\.\.65535"):
        BootstrapServer(port=70_000)
    for host in ("", "no such host", "host.invalid"):
        with pytest.raises(BootstrapError, match="can't listen"):
            BootstrapServer(host, 0)
    with pytest.raises(InvalidConfig, match="registration_ttl_s"):
        BootstrapServer(port=0, registration_ttl_s=0)
    assert open_descriptors() == before
    assert len(own_threads()) == 1


def test_open_close_open_on_one_port_leaves_nothing_behind():
    port = free_port()
    instances = set()
    BootstrapServer(port=port).close()
    before = open_descriptors()
    for _ in range(20):
        server = BootstrapServer(port=port)
        instances.add(server.instance_id)
        assert put(server)[0] == 200
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as idle:
            server.close()
            server.close()
            assert ended(idle)
        assert not server.health()["alive"]
    assert len(instances) == 20
    assert not own_threads()
    assert open_descriptors() == before


def test_it_stays_in_its_process(server):
    with pytest.raises(NotPicklable, match="socket and a thread"):
        ForkingPickler.dumps(server)


def test_a_program_that_forgets_to_close_ends_all_the_same():
    code = (
        "from kv_core.runtime.bootstrap import BootstrapServer, HttpService\n"
        "server = BootstrapServer(port=0)\n"
        "service = HttpService('x'); service.start(); service.watch(server.address, print)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, timeout=LIMIT_S, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_request_that_breaks_the_handler_breaks_nothing_else(server, monkeypatch):
    put(server)

    def broken(now):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(server._routes, "expire", broken)
    status, answer = ask(server.address, "GET", "/route")
    assert (status, "RuntimeError" in answer["error"]) == (500, True)
    until(lambda: server.snapshot()["exceptions"] >= 3, "the timer failed as well, and goes on")
    monkeypatch.undo()
    assert ask(server.address, "GET", "/route")[0] == 200
    assert server.health()["alive"]
