"""The asynchronous client of bootstrap servers: registers, resolves and watches any number of them on one thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any

import aiohttp

from kv_core.contract.failures import BootstrapError, InvalidConfig, ManagerClosed
from kv_core.runtime.bootstrap.answers import read_route
from kv_core.runtime.bootstrap.fetch import Answer, Limits, fetch, open_session
from kv_core.runtime.bootstrap.loop_thread import Complaints, LoopThread
from kv_core.runtime.bootstrap.prober import OnProbe, Prober
from kv_core.runtime.bootstrap.registrar import GOODBYE_LIMITS, GOODBYE_WAIT_S, OnRegistered, Registrar
from kv_core.runtime.bootstrap.routes import RankRegistration, RouteInfo

if TYPE_CHECKING:
    from typing_extensions import Self

CONNECT_S = 2.0
READ_S = 2.0
RESOLVE_S = CONNECT_S + READ_S
CLOSE_DEADLINE_S = 5.0

OnResolved = Callable[[str, "RouteInfo | BootstrapError"], None]


class HttpService:
    """One thread, one asyncio loop, one HTTP session, any number of bootstrap servers.

    Every method but ``close`` may be called from any thread and only hands work to the loop: none blocks. Callbacks run
    on the service's thread: they must not block it either; one that raises is logged and counted and harms nothing.
    Each address has tasks of its own, so that a server that never answers delays nobody else. After ``close`` the
    methods that start something raise ``ManagerClosed``; before ``start`` they do too.

    instance_id: of the process on whose behalf the service asks (sent as ``User-Agent``). probe_interval_s: seconds
    between renewals and between probes of one address.
    """

    def __init__(
        self, instance_id: str, *, probe_interval_s: float = 1.0, logger: logging.Logger | None = None
    ) -> None:
        if not probe_interval_s > 0:
            raise InvalidConfig(f"probe_interval_s is {probe_interval_s!r}, must be greater than 0")
        self._instance_id = instance_id
        self._interval_s = probe_interval_s
        self._logger = logger or logging.getLogger("kv_core.bootstrap")
        self._complaints = Complaints(self._logger)
        self._thread = LoopThread(f"kv-http-{instance_id[:16]}", self._complaints, on_stop=self._end)
        # All of these belong to the loop's thread.
        self._session: aiohttp.ClientSession | None = None
        self._registrars: dict[str, tuple[Registrar, asyncio.Task[None]]] = {}
        self._goodbyes: dict[str, asyncio.Task[None]] = {}
        self._resolves: dict[str, list[OnResolved]] = {}
        self._probers: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start the thread. Raises ``ManagerClosed`` after ``close``."""
        self._thread.start()

    def close(self) -> None:
        """Say goodbye everywhere (1 s at the most), end every task and join the thread. Idempotent.

        Resolves under way end with an error. From a callback it only begins the end and does not wait for it.
        """
        if not self._thread.stop(CLOSE_DEADLINE_S):
            self._logger.error("the HTTP service's thread has not ended yet")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def register(self, addr: str, make: Callable[[], RankRegistration], on_result: OnRegistered) -> None:
        """Keep a rank registered at ``addr``: now, again after every error (0.1 s, doubling up to the probe interval;
        five intervals after a refusal), and once per probe interval, which also heals a server that was restarted.

        make: called for each attempt. on_result(addr, None) after the first success, on_result(addr, error) when an
        error came (a refusal with its reason), each again whenever the outcome changes: ok, or the error's status.
        Registering at the same address again replaces what was registered before, after its goodbye.
        """
        self._call(self._begin_register, addr, make, on_result)

    def unregister(self, addr: str) -> None:
        """Stop renewing and say goodbye (best effort, 1 s at the most). Unknown addresses are ignored."""
        self._thread.call(self._stop_register, addr)

    def resolve(self, addr: str, on_result: OnResolved, *, deadline_s: float = RESOLVE_S) -> None:
        """Ask once for the ranks behind ``addr``; ``on_result`` is called exactly once, within ``deadline_s``.

        The caller schedules further attempts. A resolve of an address that is being resolved shares that answer.
        """
        self._call(self._begin_resolve, addr, on_result, deadline_s)

    def watch(self, addr: str, on_probe: OnProbe) -> None:
        """Probe ``GET /health`` of ``addr`` once per probe interval, give or take a tenth, from now on.

        Every outcome is told: a report, or an error (within 0.85 intervals; one that says ``immediate`` if the process is
        known to be gone). What goes wrong on this side only (no descriptors left) is counted and not told. Watching
        an address again replaces the callback.
        """
        self._call(self._begin_watch, addr, on_probe)

    def unwatch(self, addr: str) -> None:
        """Stop probing; one more outcome may be told meanwhile. Unknown addresses are ignored."""
        self._thread.call(self._stop_watch, addr)

    def health(self) -> dict[str, Any]:
        """``alive``, ``last_progress_age_s`` (seconds since the loop last moved on), ``exceptions`` (survived so far)."""
        return self._thread.health()

    def snapshot(self) -> dict[str, int]:
        """Counts of ``registrations``, ``goodbyes``, ``resolves`` and ``watches``: all 0 at rest."""
        return {
            "registrations": len(self._registrars),
            "goodbyes": len(self._goodbyes),
            "resolves": len(self._resolves),
            "watches": len(self._probers),
        }

    def _call(self, function: Callable[..., object], *args: Any) -> None:
        if not self._thread.call(function, *args):
            raise ManagerClosed("the HTTP service is closed or was never started: start() it, or create another one")

    async def _send(self, method: str, addr: str, path: str, limits: Limits, body: bytes | None) -> Answer:
        if self._session is None:
            self._session = open_session(self._instance_id)
        return await fetch(self._session, method, addr, path, limits, body)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._complaints.add("a task of the HTTP service ended", task.exception())

    def _begin_register(self, addr: str, make: Callable[[], RankRegistration], on_result: OnRegistered) -> None:
        self._stop_register(addr)
        limits = Limits(CONNECT_S, READ_S, RESOLVE_S)
        registrar = Registrar(
            addr,
            make,
            on_result,
            send=self._send,
            interval_s=self._interval_s,
            limits=limits,
            complaints=self._complaints,
        )
        self._registrars[addr] = (registrar, self._spawn(registrar.run(self._goodbyes.get(addr))))

    def _stop_register(self, addr: str) -> None:
        found = self._registrars.pop(addr, None)
        if found is None:
            return
        registrar, task = found
        registrar.stop()
        self._goodbyes[addr] = task
        task.add_done_callback(lambda done: self._forget_goodbye(addr, done))

    def _forget_goodbye(self, addr: str, task: asyncio.Task[None]) -> None:
        if self._goodbyes.get(addr) is task:
            del self._goodbyes[addr]

    def _begin_resolve(self, addr: str, on_result: OnResolved, deadline_s: float) -> None:
        waiting = self._resolves.get(addr)
        if waiting is not None:
            waiting.append(on_result)
            return
        self._resolves[addr] = [on_result]
        self._spawn(self._resolve(addr, Limits(min(CONNECT_S, deadline_s), min(READ_S, deadline_s), deadline_s)))

    async def _resolve(self, addr: str, limits: Limits) -> None:
        outcome: RouteInfo | BootstrapError = _cut_short(addr)
        try:
            answer = await self._send("GET", addr, "/route", limits, None)
            outcome = read_route(addr, answer.status, answer.body)
        except BootstrapError as error:
            outcome = error
        except Exception as error:  # noqa: BLE001 - exactly one result, whatever happened
            self._complaints.add("a resolve failed in an unexpected way", error)
            outcome = BootstrapError(f"the bootstrap server at {addr} could not be asked: {error!r}")
        finally:
            self._tell(addr, outcome)

    def _tell(self, addr: str, outcome: RouteInfo | BootstrapError) -> None:
        for on_result in self._resolves.pop(addr, []):
            try:
                on_result(addr, outcome)
            except Exception as error:  # noqa: BLE001 - the callback is somebody else's code
                self._complaints.add("a resolve's callback raised", error)

    def _begin_watch(self, addr: str, on_probe: OnProbe) -> None:
        self._stop_watch(addr)
        prober = Prober(addr, on_probe, send=self._send, interval_s=self._interval_s, complaints=self._complaints)
        self._probers[addr] = self._spawn(prober.run())

    def _stop_watch(self, addr: str) -> None:
        task = self._probers.pop(addr, None)
        if task is not None:
            task.cancel()

    async def _end(self) -> None:
        for addr in list(self._probers):
            self._stop_watch(addr)
        for addr in list(self._registrars):
            self._stop_register(addr)
        goodbyes = list(self._goodbyes.values())
        if goodbyes:
            await asyncio.wait(goodbyes, timeout=GOODBYE_WAIT_S + GOODBYE_LIMITS.total_s)
        rest = list(self._tasks)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for addr in list(self._resolves):
            # A task that is cancelled before its first step never comes to its own "finally".
            self._tell(addr, _cut_short(addr))
        if self._session is not None:
            await self._session.close()


def _cut_short(addr: str) -> BootstrapError:
    return BootstrapError(f"the bootstrap server at {addr} was not asked to the end: the HTTP service was closed")
