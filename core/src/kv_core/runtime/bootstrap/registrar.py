"""Keeps one rank registered at one bootstrap server, for as long as it takes. Runs on the service's loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec

from kv_core.contract.failures import BootstrapError
from kv_core.runtime.bootstrap.answers import read_done
from kv_core.runtime.bootstrap.fetch import Answer, Limits
from kv_core.runtime.bootstrap.loop_thread import Complaints
from kv_core.runtime.bootstrap.routes import Goodbye, RankRegistration

Send = Callable[[str, str, str, Limits, "bytes | None"], Awaitable[Answer]]
"""(method, address, path, limits, body) -> answer."""
OnRegistered = Callable[[str, "BootstrapError | None"], None]

FIRST_RETRY_S = 0.1
REFUSED_INTERVALS = 5
"""A refusal (4xx) is tried again after so many probe intervals: something has to be changed by hand, or to lapse."""
GOODBYE_LIMITS = Limits(0.5, 0.5, 0.5)
GOODBYE_WAIT_S = 0.5
"""How long a goodbye waits for a registration that is under way; with the limits above it takes 1 s at the most."""
JITTER = 0.1


def jittered(seconds: float) -> float:
    """The duration give or take a tenth, so that ranks and servers don't fall into step."""
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, keeps no secret


class Registrar:
    """Registers, renews, retries for ever, and says goodbye when told to stop.

    make: builds the registration anew for each attempt, so that progress_age_s is fresh. on_result: told when the
    outcome changes: registered (None), or an error with another status than before.
    """

    def __init__(
        self,
        address: str,
        make: Callable[[], RankRegistration],
        on_result: OnRegistered,
        *,
        send: Send,
        interval_s: float,
        limits: Limits,
        complaints: Complaints,
    ) -> None:
        self._address = address
        self._make = make
        self._on_result = on_result
        self._send = send
        self._interval_s = interval_s
        self._limits = limits
        self._complaints = complaints
        self._stop = asyncio.Event()
        self._instance_id: str | None = None  # of the last registration that was sent
        self._told: int | None = None  # status that was last reported: 200, or that of the error
        self._retry_s = FIRST_RETRY_S

    def stop(self) -> None:
        """Say goodbye and end ``run``. On the loop's thread."""
        self._stop.set()

    async def run(self, after: asyncio.Task[None] | None = None) -> None:
        """Keep the rank registered until ``stop``; begins when ``after`` (an earlier registrar's run) has ended."""
        if after is not None:
            await asyncio.wait([after])
        while not self._stop.is_set():
            delay = await self._attempt_or_stop()
            await self._sleep_or_stop(delay)
        if self._instance_id is not None:
            await self._goodbye(self._instance_id)

    async def _attempt_or_stop(self) -> float:
        attempt = asyncio.ensure_future(self._attempt())
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({attempt, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not attempt.done():
                # Let it arrive before the goodbye does: the other way round the rank would stay registered.
                await asyncio.wait({attempt}, timeout=GOODBYE_WAIT_S)
            return attempt.result() if attempt.done() else 0.0
        finally:
            attempt.cancel()
            stopped.cancel()

    async def _sleep_or_stop(self, delay: float) -> None:
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({stopped}, timeout=delay)
        finally:
            stopped.cancel()

    async def _attempt(self) -> float:
        """Register once; returns the seconds until the next attempt."""
        error: BootstrapError | None = None
        try:
            registration = self._make()
            self._instance_id = registration.instance_id
            answer = await self._send("PUT", self._address, "/route", self._limits, registration.encode())
            read_done(self._address, "PUT /route", answer.status, answer.body)
        except BootstrapError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001 - e.g. make() raised; the next attempt may go well
            self._complaints.add("a registration could not be made", failure)
            error = BootstrapError(f"the registration for {self._address} could not be made: {failure!r}")
        self._tell(error)
        return self._next_delay(error)

    def _next_delay(self, error: BootstrapError | None) -> float:
        if error is None:
            self._retry_s = FIRST_RETRY_S
            return jittered(self._interval_s)
        if 400 <= error.status < 500:
            return jittered(REFUSED_INTERVALS * self._interval_s)
        delay = min(self._retry_s, self._interval_s)
        self._retry_s = min(2 * self._retry_s, self._interval_s)
        return jittered(delay)

    def _tell(self, error: BootstrapError | None) -> None:
        status = 200 if error is None else error.status
        if error is not None and error.status == 200:
            status = -1  # answered with 200, but by something that is no bootstrap server
        if status == self._told or self._stop.is_set():
            return
        self._told = status
        try:
            self._on_result(self._address, error)
        except Exception as failure:  # noqa: BLE001 - the callback is somebody else's code
            self._complaints.add("a registration's callback raised", failure)

    async def _goodbye(self, instance_id: str) -> None:
        body = msgspec.json.encode(Goodbye(instance_id))
        try:
            await self._send("DELETE", self._address, "/route", GOODBYE_LIMITS, body)
        except BootstrapError as error:
            # Best effort: without it the registration lapses after its TTL.
            self._complaints.note("a goodbye did not arrive", error)
