"""The blocking client."""

from __future__ import annotations

import pytest

from core.tests.bootstrap.support import (
    RANK_ZERO,
    answering_server,
    ask,
    deaf_ports,
    free_port,
    http_answer,
    mute_servers,
    open_descriptors,
    wire,
)
from kv_core.contract.failures import BootstrapError, InvalidConfig
from kv_core.runtime.bootstrap import BootstrapClient, BootstrapConnectionError, ConnectionTrouble


def test_all_of_it(server):
    client = BootstrapClient(server.address)
    with pytest.raises(BootstrapError, match="no prefill rank is registered") as caught:
        client.route()
    assert caught.value.status == 503
    assert client.health().status == "waiting"
    ask(server.address, "PUT", "/route", wire(attn_dp_size=1))
    assert client.route().ranks[RANK_ZERO].address == "127.0.0.1:5555"
    assert client.health().instances() == {RANK_ZERO: "instance-a"}
    client.register_dp_rank(2**63 - 1, 0)
    client.register_dp_rank(5, 0)
    assert client.query_dp_ranks([]) == {}
    assert client.query_dp_ranks(iter([5, 6, 2**63 - 1])) == {5: 0, 2**63 - 1: 0}
    assert client.query_dp_ranks(range(5_000)) == {5: 0}
    for room in (-1, 2**63, 2**70):
        with pytest.raises(BootstrapError, match="bootstrap_room"):
            client.register_dp_rank(room, 0)
    with pytest.raises(BootstrapError, match=r"0\.\.0") as caught:
        client.register_dp_rank(1, 1)
    assert caught.value.status == 400


def test_no_proxy_is_asked(server, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert BootstrapClient(server.address).health().instance_id == server.instance_id


def test_what_was_seen_instead_of_an_answer():
    before = open_descriptors()
    with deaf_ports(1) as (deaf,), mute_servers(1) as (mute,), answering_server(b"") as closing:
        for address, trouble in (
            (deaf, ConnectionTrouble.TIMEOUT),
            (mute, ConnectionTrouble.TIMEOUT),
            (closing, ConnectionTrouble.CLOSED),
            (f"127.0.0.1:{free_port()}", ConnectionTrouble.REFUSED),
            ("host.invalid:80", ConnectionTrouble.UNREACHABLE),
        ):
            with pytest.raises(BootstrapConnectionError) as caught:
                BootstrapClient(address, 0.3).health()
            assert caught.value.trouble is trouble, caught.value
            assert address in str(caught.value)
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"),
        (http_answer(200, b"OK"), "no bootstrap server"),
        (http_answer(302, b"", "Location: http://127.0.0.1:1/health"), "status 302"),
        (http_answer(503, b'{"error": "sentence"}'), "sentence"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "bootstrap"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nnull\r\n0\r\n\r\n", "no bootstrap server"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "bootstrap"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n" + b" " * 20_000_000, "larger than"),
    ],
)
def test_foreign_servers(answer, words):
    with answering_server(answer) as address, pytest.raises(BootstrapError, match=words):
        BootstrapClient(address).health()


def test_settings_are_checked():
    with pytest.raises(InvalidConfig, match="port"):
        BootstrapClient("host")
    with pytest.raises(InvalidConfig, match="timeout_s"):
        BootstrapClient("host:1", 0)
