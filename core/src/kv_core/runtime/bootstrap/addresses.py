"""``host:port`` addresses, read and written in one place, so that equal addresses are equal strings.

An address is compared whole, never by its beginning: ``host:899`` is no prefix of anything.
"""

from __future__ import annotations

import ipaddress
import re

from kv_core.contract.failures import InvalidConfig

MAX_HOST_LENGTH = 253
"""Longest DNS name."""
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?", re.ASCII)
_SCOPE = re.compile(r"[A-Za-z0-9_.-]{1,32}", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


def parse_address(address: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[v6]:port`` into a host without brackets and a port in 1..65535.

    IPv6 literals come back in their canonical short form. Raises ``InvalidConfig`` with what is wrong.
    """
    if not isinstance(address, str):
        raise InvalidConfig(f"an address must be a string like 'host:8998', got {type(address).__name__}")
    host, colon, port = address.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or not 1 <= int(port) <= 65_535:
        raise InvalidConfig(
            f"address {_shown(address)} must end in ':' and a port in 1..65535, like '10.0.0.1:8998' or '[::1]:8998'"
        )
    if host.startswith("[") and host.endswith("]"):
        return canonical_host(host[1:-1]), int(port)
    if ":" in host:
        raise InvalidConfig(f"address {_shown(address)} has an IPv6 literal without brackets: write '[{host}]:{port}'")
    return canonical_host(host), int(port)


def format_address(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 literal: the form that ``parse_address`` reads."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def canonical_host(host: str) -> str:
    """The host as others should write it: an IPv6 literal shortened (its scope kept), anything else as it is.

    Raises ``InvalidConfig`` for what can't be a host name or an address.
    """
    bare, percent, scope = host.partition("%")
    if ":" in bare:
        try:
            short = ipaddress.IPv6Address(bare).compressed
        except ValueError as error:
            raise InvalidConfig(f"host {_shown(host)} is no IPv6 address: {error}") from None
        if percent and not _SCOPE.fullmatch(scope):
            raise InvalidConfig(f"host {_shown(host)} has no usable scope after '%': expected an interface's name")
        return short + percent + scope
    if len(host) > MAX_HOST_LENGTH or not _NAME.fullmatch(host):
        raise InvalidConfig(f"host {_shown(host)} is neither a host name nor an IP address")
    return host


def is_wildcard(host: str) -> bool:
    """Whether the host means "every interface": fine to bind, but nothing that a peer could connect to."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_unspecified
    except ValueError:
        return False


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
