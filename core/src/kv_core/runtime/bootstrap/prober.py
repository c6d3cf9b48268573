"""Watches one bootstrap server's health. Runs on the service's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic

from kv_core.contract.failures import BootstrapError
from kv_core.runtime.bootstrap.answers import read_health
from kv_core.runtime.bootstrap.errors import BootstrapConnectionError, ConnectionTrouble
from kv_core.runtime.bootstrap.fetch import Answer, Limits
from kv_core.runtime.bootstrap.loop_thread import Complaints
from kv_core.runtime.bootstrap.registrar import jittered
from kv_core.runtime.bootstrap.routes import HealthReport

MAX_PROBE_S = 2.0
PROBE_SHARE = 0.85
"""A probe's limit as a share of the interval: less than the shortest jittered interval, so that a miss is a miss within
one interval and probes of one address never pile up."""

OnProbe = Callable[[str, "HealthReport | BootstrapError"], None]


def probe_limits(interval_s: float) -> Limits:
    """Time limits of one probe."""
    total = min(PROBE_SHARE * interval_s, MAX_PROBE_S)
    return Limits(total, total, total)


class Prober:
    """Asks ``GET /health`` once per interval and tells each outcome, until its task is cancelled."""

    def __init__(
        self,
        address: str,
        on_probe: OnProbe,
        *,
        send: Callable[[str, str, str, Limits, bytes | None], Awaitable[Answer]],
        interval_s: float,
        complaints: Complaints,
    ) -> None:
        self._address = address
        self._on_probe = on_probe
        self._send = send
        self._interval_s = interval_s
        self._limits = probe_limits(interval_s)
        self._complaints = complaints

    async def run(self) -> None:
        """Probe for ever; the first probe goes out at once."""
        while True:
            begin = monotonic()
            await self._probe()
            await asyncio.sleep(max(0.0, begin + jittered(self._interval_s) - monotonic()))

    async def _probe(self) -> None:
        outcome: HealthReport | BootstrapError
        try:
            answer = await self._send("GET", self._address, "/health", self._limits, None)
            outcome = read_health(self._address, answer.status, answer.body)
        except BootstrapError as error:
            if isinstance(error, BootstrapConnectionError) and error.trouble is ConnectionTrouble.LOCAL:
                # That this process is out of descriptors says nothing about the other one: no false death.
                self._complaints.add("a probe could not be sent", error)
                return
            outcome = error
        except Exception as error:  # noqa: BLE001 - one bad probe must not be the last one
            self._complaints.add("a probe failed in an unexpected way", error)
            outcome = BootstrapError(f"the probe of {self._address} failed: {error!r}")
        try:
            self._on_probe(self._address, outcome)
        except Exception as error:  # noqa: BLE001 - the callback is somebody else's code
            self._complaints.add("a probe's callback raised", error)
