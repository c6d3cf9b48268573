"""Snapshots of the managers of one backend and role, read into gauges and counters."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kv_core.observe import schema
from kv_core.observe.families import Families
from kv_core.observe.figures import Figures, add_up, read_figures

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_TRANSPORTS = 8
"""Different transports that are told apart in one process; further ones are "other"."""


class Watch:
    """One manager that is being read. ``stop`` (or leaving ``with``) ends that: its gauges go to 0, its counts stay."""

    def __init__(
        self,
        snapshot: Callable[[], Mapping[str, Any]],
        health: Callable[[], Mapping[str, Any]] | None,
        end: Callable[[Watch], None],
    ) -> None:
        self._snapshot = snapshot
        self._health = health
        self._end = end
        self._complained = False
        self.last: Counter[tuple[schema.Metric, str]] = Counter()

    def read(self) -> Figures:
        """The manager's numbers of now. Raises what the manager raises."""
        return read_figures(self._snapshot(), None if self._health is None else self._health())

    def complain(self, logger: logging.Logger, error: Exception) -> None:
        """Log the first of its exceptions; the others are counted."""
        if not self._complained:
            logger.warning(
                "a snapshot for the metrics failed (%s: %s); end its watch when the manager is closed; further ones are "
                "only counted", type(error).__name__, error, exc_info=error,
            )  # fmt: skip
        self._complained = True

    def stop(self) -> None:
        """Read it once more, then never again. Idempotent."""
        self._end(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Watches:
    """All watched managers of one backend and role. ``versions``: the backend's and core's. Any thread."""

    def __init__(self, families: Families, base: tuple[str, ...], versions: tuple[str, str]) -> None:
        self._base = base
        self._versions = versions
        self._families = families
        self._lock = threading.Lock()
        self._watches: list[Watch] = []
        self._rooms = {state: families.gauge(schema.ROOMS, base, state) for state in schema.ROOM_STATES}
        self._gauges = {metric: families.gauge(metric, base) for metric in schema.GAUGES}
        counted = [(schema.STALE, kind) for kind in schema.STALE_KINDS]
        counted += [(schema.DROPPED, kind) for kind in (*schema.DROPPED_KINDS, schema.OTHER)]
        self._counters = {key: families.counter(key[0], base, key[1]) for key in counted}
        for metric in (schema.RETRANSMISSIONS, schema.DRAIN_TIMEOUTS, schema.LOST_SUBMISSIONS, schema.EVENTS_DROPPED):
            self._counters[metric, ""] = families.counter(metric, base)
        self._errors = families.counter(schema.SCRAPE_ERRORS, base)
        self._transports: set[str] = set()
        self._show_transports(set())

    def add(self, snapshot: Callable[[], Mapping[str, Any]], health: Callable[[], Mapping[str, Any]] | None) -> Watch:
        """Read this manager from now on."""
        watch = Watch(snapshot, health, self._end)
        with self._lock:
            self._watches.append(watch)
        return watch

    def _end(self, watch: Watch) -> None:
        self.refresh(logging.getLogger("kv_core.observe"))
        with self._lock:
            if watch in self._watches:
                self._watches.remove(watch)
        self.refresh(logging.getLogger("kv_core.observe"))

    def refresh(self, logger: logging.Logger) -> None:
        """Read every manager and show the sums."""
        with self._lock:
            read = []
            for watch in self._watches:
                try:
                    figures = watch.read()
                except Exception as error:  # noqa: BLE001 - one manager that can't answer must not hide the others
                    self._errors.inc()
                    watch.complain(logger, error)
                    continue
                self._count(watch, figures)
                read.append(figures)
            self._show(add_up(read))

    def _count(self, watch: Watch, figures: Figures) -> None:
        """Add what has come since this manager was last read. One that counts anew (it was replaced) begins at 0."""
        for key, value in figures.counts.items():
            before = watch.last[key]
            self._counters[key].inc(value - before if value >= before else value)
        watch.last = figures.counts

    def _show(self, total: Figures) -> None:
        for state, gauge in self._rooms.items():
            gauge.set(total.rooms[state])
        for metric, gauge in self._gauges.items():
            gauge.set(total.gauges[metric])
        self._show_transports(total.transports)

    def _show_transports(self, in_use: set[str]) -> None:
        named = {self._admit(name) for name in sorted(in_use)} or {self._admit(schema.NONE)}
        for name in self._transports:
            self._families.gauge(schema.INFO, self._base, *self._versions, name).set(name in named)

    def _admit(self, name: str) -> str:
        """The label of a transport: its name, while there are not too many of them."""
        if name not in self._transports and len(self._transports) >= MAX_TRANSPORTS:
            name = schema.OTHER
        self._transports.add(name)
        return name
