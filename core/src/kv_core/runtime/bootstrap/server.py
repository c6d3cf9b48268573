"""The bootstrap server: where decode instances learn which ranks a prefill instance has and how they are."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from kv_core.contract.failures import InvalidConfig, NotPicklable
from kv_core.runtime.bootstrap.addresses import format_address
from kv_core.runtime.bootstrap.guard import GuardedServer, connection_limit
from kv_core.runtime.bootstrap.handlers import BootstrapHandlers
from kv_core.runtime.bootstrap.listen import open_listeners
from kv_core.runtime.bootstrap.loop_thread import Complaints, LoopThread
from kv_core.runtime.bootstrap.table import DpRankTable, RouteTable

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_PORT = 8998
ROOM_TTL_S = 300.0
"""How long a room's data-parallel rank is remembered: as long as a room may bootstrap by default."""
CLOSE_DEADLINE_S = 5.0


class BootstrapServer:
    """One per prefill instance: an HTTP server on a thread of its own.

    The constructor binds, listens and starts the thread: ``server = BootstrapServer(host="0.0.0.0", port=8998)`` is
    promised to be all that an engine writes, and an address that is taken must be known there and then. Raises
    ``BootstrapError`` if it can't listen, ``InvalidConfig`` for a TTL that isn't positive.

    host: interface to bind ("::" takes IPv4 as well); the default serves this machine only. port: 0 takes a free one,
    to be read back from ``port``. registration_ttl_s: a rank that has not renewed for so long is forgotten; ranks
    renew once per probe interval (1 s). All methods may be called from any thread.

    Routes: ``PUT``, ``DELETE`` and ``GET /route``, ``POST /register_dp_rank``, ``POST /query_dp_ranks``,
    ``GET /health``. ``/health`` answers 200 whenever the server lives and says in the body how it is; ``GET /route``
    answers 503 until every rank is there, which makes it the one for a readiness probe.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        *,
        registration_ttl_s: float = 10.0,
        logger: logging.Logger | None = None,
    ) -> None:
        if not registration_ttl_s > 0:
            raise InvalidConfig(f"registration_ttl_s is {registration_ttl_s!r}, must be greater than 0")
        self._logger = logger or logging.getLogger("kv_core.bootstrap")
        self._host = host
        self._instance_id = uuid4().hex
        self._complaints = Complaints(self._logger)
        self._routes = RouteTable(registration_ttl_s)
        self._rooms = DpRankTable(ROOM_TTL_S)
        self._handlers = BootstrapHandlers(self._routes, self._rooms, self._instance_id, self._complaints)
        self._http: GuardedServer | None = None
        self._servers: list[asyncio.Server] = []
        self._listeners = open_listeners(host, port)
        self._port = int(self._listeners[0].getsockname()[1])
        self._thread = LoopThread(
            f"kv-bootstrap-{self._port}", self._complaints, on_tick=self._tick, on_stop=self._end_serving
        )
        try:
            self._thread.start()
            self._thread.call(self._begin_serving)
        except BaseException:
            self.close()
            raise

    @property
    def host(self) -> str:
        """The host that was given."""
        return self._host

    @property
    def port(self) -> int:
        """The port that is bound."""
        return self._port

    @property
    def address(self) -> str:
        """``host:port`` (an IPv6 literal in brackets): the host as it was given, the port as it is bound."""
        return format_address(self._host, self._port)

    @property
    def instance_id(self) -> str:
        """Unique to this server object; a server restarted at the same address has another one."""
        return self._instance_id

    def snapshot(self) -> dict[str, Any]:
        """Counts: ``registrations``, ``rooms`` and ``connections`` now; ``requests``, ``refused``, ``foreign`` and
        ``exceptions`` so far; and ``ready``.
        """
        http = self._http
        return {
            "ready": self._routes.ready,
            "registrations": len(self._routes),
            "rooms": len(self._rooms),
            "connections": http.open_connections if http else 0,
            "requests": self._handlers.requests,
            "refused": self._handlers.refused,
            "foreign": http.foreign if http else 0,
            "exceptions": self._complaints.count,
        }

    def health(self) -> dict[str, Any]:
        """The server's thread: ``alive``, ``last_progress_age_s``, ``exceptions``."""
        return self._thread.health()

    def close(self) -> None:
        """Stop listening, end every connection and join the thread. Idempotent."""
        ended = self._thread.stop(CLOSE_DEADLINE_S)
        if not ended:
            self._logger.error("the thread of the bootstrap server at %s did not end in time", self.address)
        for listener in self._listeners:
            listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise NotPicklable(
            "a BootstrapServer can't be pickled: it holds a socket and a thread. Create it in the process that serves"
        )

    def _begin_serving(self) -> None:
        task = asyncio.get_running_loop().create_task(self._serve())
        task.add_done_callback(self._serving_began)

    async def _serve(self) -> None:
        http = GuardedServer(self._handle, self._logger, max_connections=connection_limit())
        self._http = http
        for listener in self._listeners:
            self._servers.append(await asyncio.get_running_loop().create_server(http, sock=listener))

    def _serving_began(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._complaints.add("bootstrap server: it could not begin to serve", task.exception())

    async def _handle(self, request: Any) -> Any:
        if self._http is not None:
            self._http.touch(request.protocol)
        return await self._handlers.handle(request)

    def _tick(self, now: float) -> None:
        self._routes.expire(now)
        self._rooms.expire(now)
        if self._http is not None:
            self._http.sweep(now)

    async def _end_serving(self) -> None:
        # asyncio loses a connection that it accepted just before ``close``: the socket would stay open until the garbage
        # collector finds it. So no more are accepted, those that were are handed over and ended, and then it is closed.
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
        if self._http is not None:
            await self._http.end()
        for server in self._servers:
            server.close()
