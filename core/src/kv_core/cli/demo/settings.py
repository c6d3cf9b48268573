"""What the demo is told, and what it tells a rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from kv_core.cli.demo.tracing import moments
from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import DigestMode, Role

AUX_BYTES = 256
"""Length of the auxiliary row that goes with each request."""
SPARE = 1.25
"""Pages that a rank has, for each page that requests in flight need: it hands some back a little later."""
SPARE_WITH_KILL = 2.0
"""The same where a rank is killed: the pages of a whole window may wait for their proof while the next one runs."""


@dataclass(frozen=True)
class DemoSettings:
    """Settings of one run. Sizes in bytes, ``timeout`` in seconds.

    ``page_bytes``: one page in one layer, half of it keys and half values, each in a buffer of their own.
    ``options``: the backend's settings, by the role that they are for ("" for both). ``metrics_port``: prefill serves
    /metrics there and decode at the next one; 0: each at a free one; None: nobody does. ``trace``: the folder for what both
    ranks record of their rooms.
    """

    backend: str | None = None
    requests: int = 50
    concurrency: int = 8
    pages: int = 16
    layers: int = 8
    page_bytes: int = 32_768
    chunks: int = 2
    kill: Role | None = None
    seed: int | None = None
    digest: DigestMode = DigestMode.OFF
    timeout: float = 30.0
    metrics_port: int | None = None
    trace: Path | None = None
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.page_bytes % 2:
            raise ValueError(f"--page-bytes is {self.page_bytes}, must be even: half of a page is keys, half values")

    @property
    def num_pages(self) -> int:
        """Pages that each rank has."""
        return int(self._in_flight * self.pages) + self.pages

    @property
    def num_rows(self) -> int:
        """Auxiliary rows that each rank has."""
        return int(self._in_flight) + 1

    def metrics_ports(self) -> dict[Role, int | None]:
        """Where each rank serves its metrics."""
        first = self.metrics_port
        return {role: first and first + place for place, role in enumerate(Role)}

    @property
    def _in_flight(self) -> float:
        return self.concurrency * (SPARE if self.kill is None else SPARE_WITH_KILL)

    def options_for(self, role: Role) -> dict[str, object]:
        """The backend's settings on this rank."""
        return {**self.options.get("", {}), **self.options.get(role.value, {})}

    def as_dict(self) -> dict[str, Any]:
        """As the report shows them."""
        values = asdict(self)
        values["kill"] = self.kill.value if self.kill else None
        values["digest"] = self.digest.value
        values["trace"] = str(self.trace) if self.trace else None
        return values


class RankSettings(msgspec.Struct, frozen=True):
    """The first line that a rank reads: who it is, what memory it has, and how it is configured."""

    role: Role
    backend: str
    seed: int
    layers: int
    page_bytes: int
    pages: int
    num_pages: int
    num_rows: int
    chunks: int
    bootstrap_addr: str
    control_port: int
    timeout: float
    digest: DigestMode
    options: dict[str, Any]
    metrics_port: int | None = None
    trace: str | None = None

    def config(self) -> TransferConfig:
        """The settings of the rank's manager."""
        default = TransferConfig.flight_recorder
        return TransferConfig(
            bootstrap_addr=self.bootstrap_addr if self.role is Role.PREFILL else None,
            control_port=self.control_port,
            bootstrap_timeout_s=self.timeout,
            waiting_timeout_s=self.timeout,
            transferring_timeout_s=self.timeout,
            digest=self.digest,
            flight_recorder=default if self.trace is None else max(default, moments(self.chunks)),
            options=self.options,
        )


def rank_settings(
    settings: DemoSettings, role: Role, backend: str, seed: int, bootstrap_addr: str, control_port: int,
    metrics_port: int | None = None,
) -> RankSettings:  # fmt: skip
    """What one rank is told. ``control_port`` is 0 at the first start, and later the one that it had."""
    return RankSettings(
        role=role, backend=backend, seed=seed, layers=settings.layers, page_bytes=settings.page_bytes,
        pages=settings.pages, num_pages=settings.num_pages, num_rows=settings.num_rows, chunks=settings.chunks,
        bootstrap_addr=bootstrap_addr, control_port=control_port, timeout=settings.timeout, digest=settings.digest,
        options=settings.options_for(role), metrics_port=metrics_port,
        trace=str(settings.trace) if settings.trace else None,
    )  # fmt: skip
