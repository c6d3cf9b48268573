"""``--metrics-port``: each rank's process serves its own /metrics, as in a deployment. Nothing is imported without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from kv_core.contract.enums import Role
from kv_core.contract.interfaces import BaseKVManager
from kv_core.contract.records import BackendInfo

if TYPE_CHECKING:
    from typing_extensions import Self

    from kv_core.observe import MetricsObserver, MetricsServer, PrometheusMetrics

HOST = "127.0.0.1"


def load() -> tuple[type[PrometheusMetrics], type[MetricsServer]]:
    """What the extra brings. Raises ``ModuleNotFoundError`` with what to install."""
    from kv_core.observe import MetricsServer, PrometheusMetrics  # noqa: PLC0415

    return PrometheusMetrics, MetricsServer


class RankMetrics:
    """The metrics of one rank; without a port there are none. Raises ``InvalidConfig`` if the port is taken."""

    def __init__(self, info: BackendInfo, role: Role, port: int | None) -> None:
        self.url = ""
        self._open = ExitStack()
        self._observer: MetricsObserver | None = None
        if port is not None:
            metrics, server = load()
            self._observer = self._open.enter_context(metrics()).observer(info, role)
            self.url = self._open.enter_context(server(HOST, port)).url

    @property
    def observers(self) -> Sequence[object]:
        """What the manager's events are told."""
        return () if self._observer is None else (self._observer,)

    @contextmanager
    def watching(self, manager: BaseKVManager) -> Iterator[None]:
        """Read the manager's snapshot when somebody scrapes."""
        if self._observer is None:
            yield
        else:
            with self._observer.watch(manager.snapshot, manager.health):
                yield

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
