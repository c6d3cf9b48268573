"""``/metrics`` over HTTP, for a process that has no web server of its own."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from kv_core.contract.failures import InvalidConfig
from kv_core.observe.prometheus import multiprocess_mode

if TYPE_CHECKING:
    from typing_extensions import Self

JOIN_S = 5.0


class MetricsServer:
    """Serves a registry at ``http://host:port/metrics`` until ``close``. Port 0 takes a free one; read it from ``port``.

    ``registry``: None takes prometheus-client's own, or, where several processes share a folder, what is in that.
    Raises ``InvalidConfig`` if the port can't be had.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, registry: CollectorRegistry | None = None) -> None:
        try:
            served = start_http_server(port, host, default_registry() if registry is None else registry)
        except OSError as error:
            text = (
                f"metrics can't be served at {host}:{port} ({error}): choose a free port and an address of this machine"
            )
            raise InvalidConfig(text) from error
        self._server: WSGIServer = served[0]
        self._thread: threading.Thread = served[1]
        self.host = host
        self.port: int = self._server.server_port

    @property
    def url(self) -> str:
        """Where to scrape."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Serve no more, and join the thread. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(JOIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def default_registry() -> CollectorRegistry:
    """The registry of this process; with several processes, a new one that adds up what all of them have in their folder."""
    if not multiprocess_mode():
        return REGISTRY
    registry = CollectorRegistry()
    collector = MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    assert collector is not None, "it has registered itself"
    return registry
