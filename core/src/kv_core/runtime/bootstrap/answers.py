"""Reading a bootstrap server's answers, the same way for the blocking and the asynchronous client. Pure."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from kv_core.contract.failures import BootstrapError, MessageError
from kv_core.runtime.bootstrap.routes import HealthReport, PrefillServerInfo, Refusal, RouteInfo, decode_json

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""Largest answer that is read: the route of ``MAX_RANKS`` ranks fits."""
JSON_HEADERS = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}

_T = TypeVar("_T")


def read_route(address: str, status: int, body: bytes) -> RouteInfo:
    """Answer to ``GET /route``. Raises ``BootstrapError`` with the status."""
    info = _read(address, "GET /route", status, body, PrefillServerInfo)
    try:
        return info.route()
    except MessageError as error:
        raise _not_ours(address, "GET /route", status, str(error)) from None


def read_health(address: str, status: int, body: bytes) -> HealthReport:
    """Answer to ``GET /health``. Raises ``BootstrapError`` with the status."""
    return _read(address, "GET /health", status, body, HealthReport)


def read_done(address: str, what: str, status: int, body: bytes) -> None:
    """Answer of a request that only says that it was done. Raises ``BootstrapError`` with the status."""
    _read(address, what, status, body, _Done)


def read_dp_ranks(address: str, status: int, body: bytes) -> dict[int, int]:
    """Answer to ``POST /query_dp_ranks``. Raises ``BootstrapError`` with the status."""
    return _read(address, "POST /query_dp_ranks", status, body, dict[int, int])


def too_large(address: str, what: str, status: int) -> BootstrapError:
    """What to raise when an answer goes on beyond the limit."""
    return _not_ours(address, what, status, f"the answer is larger than {MAX_ANSWER_BYTES} bytes")


class _Done(msgspec.Struct):
    status: str


def _read(address: str, what: str, status: int, body: bytes, kind: type[_T]) -> _T:
    if status != 200:
        raise _refused(address, what, status, body)
    try:
        return decode_json(body, kind, "its body")
    except MessageError as error:
        raise _not_ours(address, what, status, str(error)) from None


def _refused(address: str, what: str, status: int, body: bytes) -> BootstrapError:
    try:
        refusal = decode_json(body, Refusal, "its body")
    except MessageError:
        return _not_ours(address, what, status, "its body is no refusal of this protocol")
    return BootstrapError(
        f"the bootstrap server at {address} refused {what} with status {status}: {refusal.error[:2000]}", status=status
    )


def _not_ours(address: str, what: str, status: int, seen: str) -> BootstrapError:
    return BootstrapError(
        f"what answers at {address} is no bootstrap server that this version understands: {what} was answered with "
        f"status {status}, and {seen}; check host and port (bootstrap_addr)",
        status=status,
    )
