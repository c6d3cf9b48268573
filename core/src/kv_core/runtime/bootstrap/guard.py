"""aiohttp's low-level server, kept within bounds: how many connections, for how long, and what foreign bytes get."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import msgspec
from aiohttp import web

from kv_core.runtime.bootstrap.routes import Refusal

MAX_CONNECTIONS = 4_096
IDLE_LIMIT_S = 15.0
"""Longest time on a connection without a complete request: ends idle, slow and stuck ones alike."""
MAX_LINE_BYTES = 8_190
MAX_HEADER_BYTES = 8_190
_PASSES_TO_HAND_OVER = 8
"""Passes of the loop that asyncio takes from accepting a connection to closing one that is aborted at once (4), and more."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def connection_limit() -> int:
    """How many connections are kept: never so many that the engine around the server runs out of descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, min(MAX_CONNECTIONS, soft // 2))


def json_response(status: int, body: bytes) -> web.Response:
    """An answer whose body is JSON already."""
    return web.Response(status=status, body=body, content_type="application/json")


def refusal_response(status: int, refusal: Refusal) -> web.Response:
    """A refusal; the connection ends with it, since the rest of its request may never have been read."""
    response = json_response(status, msgspec.json.encode(refusal))
    response.force_close()
    return response


class _Connection(web.RequestHandler):
    """One connection. Bytes that aren't HTTP are counted and answered with a sentence, not logged with a traceback."""

    __slots__ = ("_on_foreign",)

    def __init__(self, manager: web.Server, on_foreign: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._on_foreign = on_foreign

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        self._on_foreign()
        if request.writer.output_size > 0:
            raise ConnectionError("part of an answer was sent already: a second one can't be")
        why = (message or "unreadable").strip()[:200]
        return refusal_response(status, Refusal(f"this is no request that the bootstrap server understands: {why}"))


class GuardedServer(web.Server):
    """Makes the protocol object of each new connection and ends those that take too long or are too many.

    Everything here runs on the loop's thread.
    """

    def __init__(self, handler: Handler, logger: logging.Logger, *, max_connections: int) -> None:
        super().__init__(handler)
        self.foreign = 0
        """Requests that were not HTTP."""
        self._logger = logger
        self._max_connections = max_connections
        self._ending = False
        # In the order of the last request, longest idle first.
        self._active: OrderedDict[web.RequestHandler, tuple[asyncio.Transport, float]] = OrderedDict()

    def __call__(self) -> web.RequestHandler:
        """Called by asyncio: the protocol object of a new connection."""
        return _Connection(
            self,
            self._count_foreign,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_LIMIT_S,
            logger=self._logger,
            access_log=None,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            lingering_time=1.0,
            auto_decompress=False,  # nothing here is worth compressing, and a small body could grow without bound
        )

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Called by aiohttp for each new connection; the longest idle one makes room when there are too many."""
        super().connection_made(handler, transport)
        if self._ending:
            transport.abort()
            return
        if len(self._active) >= self._max_connections:
            self._abort(next(iter(self._active)))
        self._active[handler] = (transport, monotonic() + IDLE_LIMIT_S)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Called by aiohttp when a connection has ended."""
        self._active.pop(handler, None)
        super().connection_lost(handler, exc)

    @property
    def open_connections(self) -> int:
        """Connections now open."""
        return len(self._active)

    def touch(self, handler: web.RequestHandler) -> None:
        """A request was read on this connection: give it another ``IDLE_LIMIT_S``."""
        found = self._active.get(handler)
        if found is not None:
            self._active[handler] = (found[0], monotonic() + IDLE_LIMIT_S)
            self._active.move_to_end(handler)

    def sweep(self, now: float) -> None:
        """End the connections whose time is up."""
        while self._active:
            handler, (_, deadline) = next(iter(self._active.items()))
            if now < deadline:
                break
            self._abort(handler)

    async def end(self) -> None:
        """End every connection at once, those included that were accepted but not yet handed over."""
        self._ending = True
        while self._active:
            self._abort(next(iter(self._active)))
        await self.shutdown(1.0)
        for _ in range(_PASSES_TO_HAND_OVER):
            await asyncio.sleep(0)

    def _abort(self, handler: web.RequestHandler) -> None:
        transport, _ = self._active.pop(handler)
        transport.abort()

    def _count_foreign(self) -> None:
        self.foreign += 1
