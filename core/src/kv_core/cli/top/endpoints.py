"""The endpoints that are watched: asked all at once, within one time limit; what one of them does hides none of the others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from time import monotonic

import aiohttp
import yarl

from kv_core.cli.top.readings import NoMetricsError, Reading, parse
from kv_core.cli.top.summing import Watched, in_use, roles_of
from kv_core.cli.top.view import BootstrapView, EndpointRow, RankRow, View
from kv_core.cli.top.window import History
from kv_core.contract.failures import BootstrapError, InvalidConfig
from kv_core.runtime.bootstrap.addresses import parse_address
from kv_core.runtime.bootstrap.answers import read_health

METRICS, BOOTSTRAP = "metrics", "bootstrap"
METRICS_PATH, HEALTH_PATH = "/metrics", "/health"
MAX_BYTES = 16 * 1024 * 1024
OK, NOT_FOUND = 200, 404


class _Trouble(Exception):
    """Why an endpoint can't be read now: a sentence."""


def read_address(text: str) -> yarl.URL:
    """An address as it is given: ``HOST:PORT``, or a URL. Raises ``InvalidConfig``."""
    try:
        if "://" not in text:
            parse_address(text.partition("/")[0])
            text = f"http://{text}"
        url = yarl.URL(text)
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("expected HOST:PORT or http://HOST:PORT/PATH")
    except ValueError as error:
        raise InvalidConfig(f"{text!r} is no address of an endpoint: {error}") from None
    return url


class Endpoint:
    """One address. Without a path it is a metrics endpoint or, if it has none but /health, a bootstrap server."""

    def __init__(self, text: str, window_s: float) -> None:
        self.url = read_address(text)
        self.text = text
        bare = self.url.path in ("", "/")
        self._may_be_bootstrap = bare
        self._kind = BOOTSTRAP if self.url.path == HEALTH_PATH else METRICS
        self._url = self.url.with_path(METRICS_PATH) if bare else self.url
        self._history = History(window_s)
        self.error = "not asked yet"
        self._reading: Reading | None = None
        self.bootstrap: BootstrapView | None = None

    async def look(self, session: aiohttp.ClientSession, timeout_s: float) -> None:
        """Ask it once, and keep what it said or why it said nothing."""
        self._reading, self.bootstrap = None, None
        try:
            await self._look(session, timeout_s)
            self.error = ""
        except (_Trouble, NoMetricsError, BootstrapError) as error:
            self.error = str(error)
        except asyncio.TimeoutError:
            self.error = f"no answer within {timeout_s:g} s: the process stands still, or the host is gone"
        except (OSError, ValueError, aiohttp.ClientError) as error:
            self.error = _why(error)

    async def _look(self, session: aiohttp.ClientSession, timeout_s: float) -> None:
        status, body = await _get(session, self._url, timeout_s)
        if status == NOT_FOUND and self._may_be_bootstrap and self._kind == METRICS:
            health = self.url.with_path(HEALTH_PATH)
            found, answer = await _get(session, health, timeout_s)
            self._read_bootstrap(found, answer)
            self._kind, self._url = BOOTSTRAP, health
        elif self._kind == BOOTSTRAP:
            self._read_bootstrap(status, body)
        elif status != OK:
            raise _Trouble(f"{self._url.path} was answered with status {status}: check the address")
        else:
            reading = parse(body.decode("utf-8", "replace"), monotonic())
            self._history.add(reading)
            self._reading = reading

    def _read_bootstrap(self, status: int, body: bytes) -> None:
        report = read_health(self.text, status, body)
        ranks = (RankRow(rank.ranks, rank.instance_id, rank.age_s, rank.progress_age_s) for rank in report.ranks)
        self.bootstrap = BootstrapView(self.text, report.ready, tuple(sorted(ranks, key=lambda rank: rank.rank)))

    @property
    def watched(self) -> Watched:
        """Its contribution to the sums. One that does not answer has none, though the window goes on when it does again."""
        return Watched(self._reading, self._history.growth() if self._reading is not None else None)

    def row(self) -> EndpointRow:
        """How it is."""
        found = in_use(self._reading) if self._reading is not None else {}
        return EndpointRow(self.text, self._kind, self.error, restarts=self._history.restarts, **found)


async def look_at_all(endpoints: Sequence[Endpoint], session: aiohttp.ClientSession, timeout_s: float) -> View:
    """Ask all of them at once, and add up."""
    await asyncio.gather(*(endpoint.look(session, timeout_s) for endpoint in endpoints))
    watched = [endpoint.watched for endpoint in endpoints]
    return View(
        window_s=max((one.growth.seconds for one in watched if one.growth is not None), default=0.0),
        endpoints=tuple(endpoint.row() for endpoint in endpoints),
        roles=roles_of(watched),
        bootstrap=tuple(endpoint.bootstrap for endpoint in endpoints if endpoint.bootstrap is not None),
    )


async def _get(session: aiohttp.ClientSession, url: yarl.URL, timeout_s: float) -> tuple[int, bytes]:
    """Status and body. Raises what aiohttp raises, ``TimeoutError`` and ``_Trouble``."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with session.get(url, timeout=timeout, allow_redirects=False) as response:
        body = bytearray()
        async for part in response.content.iter_any():
            body += part
            if len(body) > MAX_BYTES:
                raise _Trouble(f"the answer is larger than {MAX_BYTES} bytes: check the address")
        return response.status, bytes(body)


def _why(error: Exception) -> str:
    """An error of the connection, for a row of the table."""
    cause = getattr(error, "os_error", error)
    if isinstance(cause, socket.gaierror):
        return f"the host's name can't be resolved ({cause.strerror})"
    if isinstance(cause, ConnectionRefusedError):
        return "the connection was refused: nothing listens there"
    if isinstance(error, aiohttp.ServerDisconnectedError) or isinstance(cause, ConnectionError):
        return "the connection was closed before an answer came"
    if isinstance(cause, OSError):
        return f"it can't be reached ({cause.strerror or cause})"
    return f"what answers there does not speak HTTP as expected ({type(error).__name__}: {str(error)[:100]})"
