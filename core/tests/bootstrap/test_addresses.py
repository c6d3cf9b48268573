"""Addresses: read, written, compared whole."""

from __future__ import annotations

import pytest

from kv_core.contract.failures import InvalidConfig
from kv_core.runtime.bootstrap.addresses import canonical_host, format_address, is_wildcard, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8998", "127.0.0.1", 8998),
        ("prefill-0.some_service.svc:1", "prefill-0.some_service.svc", 1),
        ("[::1]:65535", "::1", 65535),
        ("[0:0:0:0:0:0:0:1]:80", "::1", 80),
        ("[2001:DB8::0:1]:80", "2001:db8::1", 80),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("[10.0.0.1]:80", "10.0.0.1", 80),
    ],
)
def test_parsed_and_formatted(text, host, port):
    assert parse_address(text) == (host, port)
    assert parse_address(format_address(host, port)) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "", "host", "host:", ":80", "host:0", "host:65536", "host:-1", "host:+80", "host: 80", "host:80 ", "host:\uff18\uff10",
        "host:99999999999999999999", "::1:80", "[::1]80", "[::1:80", "[zz::1]:80", "[::1%]:80", "[::1%a/b]:80",
        "ho st:80", "host/path:80", "user@host:80", "http://host:80", "a" * 254 + ":80", "-h:80", "h\n:80", "[]:80",
    ],
)  # fmt: skip
def test_what_is_no_address(text):
    with pytest.raises(InvalidConfig) as caught:
        parse_address(text)
    assert len(str(caught.value)) > 20


def test_an_address_must_be_text():
    with pytest.raises(InvalidConfig, match="got int"):
        parse_address(8998)  # type: ignore[arg-type]


def test_no_address_is_another_ones_prefix():
    assert parse_address("host:899") != parse_address("host:8998")
    assert format_address("host", 899) != format_address("host", 8998)
    assert format_address("[::1]", 80) == format_address("::1", 80) == "[::1]:80"


def test_wildcards():
    assert [is_wildcard(host) for host in ("0.0.0.0", "::", "::%eth0")] == [True] * 3
    assert [is_wildcard(host) for host in ("127.0.0.1", "::1", "host", "0.0.0.1")] == [False] * 4
    assert canonical_host("::ffff:1.2.3.4") == canonical_host("::FFFF:1.2.3.4")
