"""One HTTP request of the asynchronous client: bounded in time and size, every error told apart."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Coroutine
from typing import Any, NamedTuple

import aiohttp
import yarl

from kv_core.contract.failures import BootstrapError, InvalidConfig
from kv_core.runtime.bootstrap.addresses import parse_address
from kv_core.runtime.bootstrap.answers import JSON_HEADERS, MAX_ANSWER_BYTES, too_large
from kv_core.runtime.bootstrap.errors import BootstrapConnectionError, ConnectionTrouble

DNS_CACHE_S = 1
"""A restarted instance may have another address behind its name, and has to be found within a heartbeat."""

_LOCAL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
_CLOSED = (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ESHUTDOWN)


class Answer(NamedTuple):
    """Status and body of an HTTP answer."""

    status: int
    body: bytes


class Limits(NamedTuple):
    """Seconds: to connect, between two pieces of the answer, and in all (name look-up included)."""

    connect_s: float
    read_s: float
    total_s: float


def open_session(instance_id: str) -> aiohttp.ClientSession:
    """A session without limits on connections, without cookies, proxies or keep-alive. On the loop's thread."""
    connector = aiohttp.TCPConnector(
        limit=0,
        # Behind a stable address an old connection may still reach the old, draining process (sglang #34289).
        force_close=True,
        ttl_dns_cache=DNS_CACHE_S,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={**JSON_HEADERS, "User-Agent": f"kv-core/{instance_id}"},
        auto_decompress=False,
        trust_env=False,
    )


async def fetch(
    session: aiohttp.ClientSession, method: str, address: str, path: str, limits: Limits, body: bytes | None = None
) -> Answer:
    """Send one request on a connection of its own and read the whole answer.

    Raises ``BootstrapConnectionError`` if there is no answer, and ``BootstrapError`` for one that is too large.
    """
    what = f"{method} {path}"
    try:
        host, port = parse_address(address)
    except InvalidConfig as error:
        raise BootstrapError(f"bootstrap server {address!r} can't be asked: {error}") from None
    url = yarl.URL.build(scheme="http", host=host, port=port, path=path)
    timeout = aiohttp.ClientTimeout(sock_connect=limits.connect_s, sock_read=limits.read_s)
    try:
        return await _within(limits.total_s, _exchange(session, method, url, timeout, body))
    except _TooLargeError as error:
        raise too_large(address, what, error.status) from None
    except (OSError, ValueError, asyncio.TimeoutError, aiohttp.ClientError) as error:
        raise _explained(error, address, what, limits) from error


async def _within(limit_s: float, work: Coroutine[Any, Any, Answer]) -> Answer:
    """``asyncio.wait_for`` that can always be cancelled: up to Python 3.11 that one drops a cancellation which comes in
    the moment that the work is done (python/cpython#86296), and a probe that was told to end would go on for ever.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=limit_s)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if task.done() and not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report an error that nobody waits for any more


class _TooLargeError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


async def _exchange(
    session: aiohttp.ClientSession, method: str, url: yarl.URL, timeout: aiohttp.ClientTimeout, body: bytes | None
) -> Answer:
    async with session.request(method, url, data=body, timeout=timeout, allow_redirects=False) as response:
        content = bytearray()
        async for part in response.content.iter_any():
            content += part
            if len(content) > MAX_ANSWER_BYTES:
                raise _TooLargeError(response.status)
        return Answer(response.status, bytes(content))


def _explained(error: Exception, address: str, what: str, limits: Limits) -> BootstrapConnectionError:
    trouble, seen, remedy = _diagnose(error, limits)
    return BootstrapConnectionError(
        f"the bootstrap server at {address} gave no answer to {what}: {seen}; {remedy}", trouble=trouble
    )


def _diagnose(error: Exception, limits: Limits) -> tuple[ConnectionTrouble, str, str]:
    """What was seen, in three forms: a kind, a clause, and what to do."""
    if isinstance(error, asyncio.TimeoutError):
        return ConnectionTrouble.TIMEOUT, _timeout_seen(error, limits), "check that the host is up and not overloaded"
    cause = getattr(error, "os_error", error)
    if isinstance(cause, socket.gaierror):
        return ConnectionTrouble.UNREACHABLE, f"its name can't be resolved ({cause.strerror})", "check the host's name"
    number = getattr(cause, "errno", None)
    if isinstance(cause, ConnectionRefusedError) or number == errno.ECONNREFUSED:
        seen = "the connection was refused, nothing listens there"
        return ConnectionTrouble.REFUSED, seen, "start the prefill instance, or check host and port (bootstrap_addr)"
    if isinstance(error, aiohttp.ServerDisconnectedError) or number in _CLOSED:
        seen = "the connection was closed before an answer came"
        return ConnectionTrouble.CLOSED, seen, "its process ended, or another kind of server listens there"
    if number in _LOCAL:
        seen = f"this process could not open a connection ({cause})"
        return ConnectionTrouble.LOCAL, seen, "raise its limit of open files (ulimit -n)"
    if isinstance(cause, OSError):
        return ConnectionTrouble.UNREACHABLE, f"it can't be reached ({cause})", "check host and network"
    seen = f"what answers there does not speak HTTP as expected ({type(error).__name__}: {str(error)[:200]})"
    return ConnectionTrouble.PROTOCOL, seen, "check host and port (bootstrap_addr)"


def _timeout_seen(error: Exception, limits: Limits) -> str:
    if isinstance(error, aiohttp.ServerTimeoutError):
        if str(error).startswith("Connection timeout"):
            return f"no connection came about within {limits.connect_s:g} s"
        return f"the connection was taken, but nothing came on it for {limits.read_s:g} s"
    return f"connecting and answering took longer than {limits.total_s:g} s"
