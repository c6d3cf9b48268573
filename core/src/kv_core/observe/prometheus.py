"""Prometheus metrics of any backend's managers: an observer for what happens, snapshots for what is.

    metrics = PrometheusMetrics()                                    # in prometheus-client's default registry
    observer = metrics.observer(backend.info, Role.PREFILL)          # every counter exists at 0 from here on
    with backend.create_manager(Role.PREFILL, args, config, observers=[observer]) as manager:
        observer.watch(manager.snapshot, manager.health)             # gauges: read when somebody scrapes
        ...

No manager ever sees the collector: it is told events on the manager's observer thread and calls the functions that
it was given from the scraping one, so that the engine's thread pays for neither. docs/metrics.md lists the metrics.

**Several processes.** With ``PROMETHEUS_MULTIPROC_DIR`` set before the first import of ``prometheus_client``, values live
in that folder, and who serves the scrape uses ``prometheus_client.multiprocess.MultiProcessCollector``. It can't ask
another process's manager, so a thread here writes the snapshots' numbers there every ``refresh_s`` seconds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from kv_core.contract.enums import Role
from kv_core.contract.records import BackendInfo
from kv_core.observe.families import Families
from kv_core.observe.mirror import Mirror
from kv_core.observe.observer import MetricsObserver
from kv_core.observe.schema import SCHEMA

if TYPE_CHECKING:
    from typing_extensions import Self

REFRESH_S = 1.0
MULTIPROCESS_VARIABLES = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")


class PrometheusMetrics(Collector):
    """One process's metrics, for any number of managers. May be used from any thread.

    ``registry``: where to be scraped (default: prometheus-client's own; each registry can have one). ``labels``:
    constant labels for every metric, such as ``{"model_name": "llama", "tp_rank": "0"}``. ``refresh_s``: how often
    snapshots are read with several processes. Raises ``InvalidConfig`` for labels that can't be.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        refresh_s: float = REFRESH_S,
    ) -> None:
        self._families = Families(SCHEMA, labels)
        self._observers: dict[tuple[str, Role], MetricsObserver] = {}
        self._lock = threading.Lock()
        self._registry = REGISTRY if registry is None else registry
        self._registry.register(self)
        self._registered = True
        self._mirror = Mirror(self.refresh, refresh_s) if multiprocess_mode() else None
        if self._mirror is not None:
            self._mirror.start()

    def observer(self, backend: BackendInfo, role: Role) -> MetricsObserver:
        """The observer for managers of this backend and role; the same one each time."""
        key = (backend.name, Role(role))
        with self._lock:
            if key not in self._observers:
                self._observers[key] = MetricsObserver(self._families, backend, Role(role), version("kv-core"))
            return self._observers[key]

    def refresh(self) -> None:
        """Read every watched snapshot now."""
        with self._lock:
            observers = list(self._observers.values())
        for observer in observers:
            observer.refresh()

    def collect(self) -> Iterable[Family]:
        """What a registry calls when it is scraped."""
        self.refresh()
        return self._families.collect()

    def describe(self) -> Iterable[Family]:
        """The names, for a registry that refuses doubles. Reads no snapshot."""
        return self._families.describe()

    def close(self) -> None:
        """Leave the registry and end the thread, if there is one. Idempotent. What was observed stays readable."""
        if self._mirror is not None:
            self._mirror.close()
        with self._lock:
            registered, self._registered = self._registered, False
        if registered:
            self._registry.unregister(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def multiprocess_mode() -> bool:
    """Whether prometheus-client keeps its values in a folder that several processes share."""
    return any(os.environ.get(name) for name in MULTIPROCESS_VARIABLES)
