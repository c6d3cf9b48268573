"""The service resolves addresses: once, for everybody who asks, whatever is at the other end."""

from __future__ import annotations

import pytest

from core.tests.bootstrap.support import (
    LIMIT_S,
    RANK_ZERO,
    Collector,
    answering_server,
    ask,
    deaf_ports,
    free_port,
    http_answer,
    mute_servers,
    silent_ports,
    wire,
)
from kv_core.contract.failures import BootstrapError
from kv_core.runtime.bootstrap import BootstrapConnectionError, ConnectionTrouble, HttpService, RouteInfo, answers


def resolve(service, address, **settings):
    told = Collector()
    service.resolve(address, told, **settings)
    (outcome,) = told.wait_count(1)
    assert told.calls[0][0] == address
    return outcome


def test_a_route(service, server):
    ask(server.address, "PUT", "/route", wire(rank_port=77))
    route = resolve(service, server.address)
    assert isinstance(route, RouteInfo)
    assert (route.server_instance, route.sizes, route.page_size) == (server.instance_id, (1, 1, 1, 1), 16)
    assert (route.kv_cache_dtype, route.kv_layout, route.backend) == ("bfloat16", "NHD", "some")
    assert (route.ranks[RANK_ZERO].address, route.ranks[RANK_ZERO].instance_id) == ("127.0.0.1:77", "instance-a")


def test_missing_ranks_are_named(service, server):
    ask(server.address, "PUT", "/route", wire(attn_tp_size=3, attn_tp_rank=1))
    error = resolve(service, server.address)
    assert error.status == 503
    assert "2 of 3 prefill ranks (tp, pp, cp, dp) are missing: (0, 0, 0, 0), (2, 0, 0, 0)" in str(error)


def test_concurrent_resolves_of_one_address_are_one_request(service, server):
    ask(server.address, "PUT", "/route", wire())
    before = server.snapshot()["requests"]
    told = [Collector() for _ in range(100)]
    for one in told:
        service.resolve(server.address, one)
    routes = [one.wait_count(1)[0] for one in told]
    assert all(isinstance(route, RouteInfo) for route in routes)
    assert server.snapshot()["requests"] - before < 50  # those that came after an answer ask anew
    assert service.snapshot()["resolves"] == 0
    assert all(len(one.calls) == 1 for one in told)


def test_what_was_seen_instead_of_an_answer(service):
    limit = 0.3
    with deaf_ports(1) as (deaf,), mute_servers(1) as (mute,), mute_servers(1, b"HTTP/1.1 200 OK\r\n") as (slow,):
        for address, trouble, words in (
            (deaf, ConnectionTrouble.TIMEOUT, "0.3 s"),
            (mute, ConnectionTrouble.TIMEOUT, "0.3 s"),
            (slow, ConnectionTrouble.TIMEOUT, "0.3 s"),
            (f"127.0.0.1:{free_port()}", ConnectionTrouble.REFUSED, "nothing listens there"),
            (f"localhost:{free_port()}", ConnectionTrouble.REFUSED, "nothing listens there"),
            ("host.invalid:80", ConnectionTrouble.UNREACHABLE, "can't be resolved"),
        ):
            error = resolve(service, address, deadline_s=limit if trouble is ConnectionTrouble.TIMEOUT else LIMIT_S)
            assert isinstance(error, BootstrapConnectionError), error
            assert (error.trouble, error.status) == (trouble, 0), error
            assert address in str(error)
            assert words in str(error)
            assert error.immediate == (trouble is ConnectionTrouble.REFUSED)
    with answering_server(b"") as closing:
        error = resolve(service, closing)
        assert error.trouble is ConnectionTrouble.CLOSED
        assert error.immediate


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"),
        (http_answer(200, b"OK"), "no bootstrap server that this version understands"),
        (http_answer(200, b"{}"), "missing required field"),
        (http_answer(200, b"[" * 60_000), "status 200"),
        (http_answer(404, b"<html>not here</html>"), "status 404"),
        (http_answer(302, b"", "Location: http://127.0.0.1:1/route"), "status 302"),
        (http_answer(500, b'{"error": "sentence"}'), "sentence"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "bootstrap"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "bootstrap"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", "does not speak HTTP"),
    ],
)
def test_foreign_servers(service, answer, words):
    with answering_server(answer) as address:
        error = resolve(service, address)
    assert isinstance(error, BootstrapError)
    assert words in str(error)
    assert address in str(error)
    assert service.health()["exceptions"] == 0


def test_an_answer_without_end(service, monkeypatch):
    monkeypatch.setattr("kv_core.runtime.bootstrap.fetch.MAX_ANSWER_BYTES", 100_000)
    assert answers.MAX_ANSWER_BYTES > 100_000
    with answering_server(http_answer(200, b"x" * 5_000_000)) as address:
        assert "larger than" in str(resolve(service, address))


@pytest.mark.parametrize("address", ["", "host", "host:0", "::1:80", "a b:80", "http://x:80", "x" * 500 + ":1"])
def test_what_is_no_address(service, address):
    error = resolve(service, address)
    assert isinstance(error, BootstrapError)
    assert "can't be asked" in str(error)
    assert service.health()["exceptions"] == 0


def test_a_thousand_black_holes_hold_nothing_up(server, monkeypatch):
    for name in ("CONNECT_S", "READ_S"):
        monkeypatch.setattr(f"kv_core.runtime.bootstrap.service.{name}", LIMIT_S)
    ask(server.address, "PUT", "/route", wire())
    told = Collector()
    with silent_ports(1_000) as holes, HttpService("test") as service:
        for address in holes:
            service.resolve(address, told, deadline_s=LIMIT_S)
        route = resolve(service, server.address)
        assert isinstance(route, RouteInfo)
        assert service.snapshot()["resolves"] == len(holes)  # all of them are still being waited for
        assert told.outcomes() == []
        service.close()
        assert len(told.outcomes()) == len(holes)
        assert service.snapshot()["resolves"] == 0


def test_closing_tells_those_who_wait():
    told = Collector()
    with mute_servers(1) as (mute,), HttpService("test") as service:
        service.resolve(mute, told, deadline_s=LIMIT_S)
        service.resolve(mute, told, deadline_s=LIMIT_S)
    assert ["was closed" in str(outcome) for outcome in told.outcomes()] == [True, True]


def test_a_raising_callback_harms_nobody_else(service, server):
    ask(server.address, "PUT", "/route", wire())

    def raising(address, outcome):
        raise RuntimeError("on purpose")

    service.resolve(server.address, raising)
    assert isinstance(resolve(service, server.address), RouteInfo)
    assert service.health()["exceptions"] == 1
