"""A thread that runs an asyncio loop, survives whatever happens in it, and ends when it is told to."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from typing import Any

from kv_core.contract.failures import ManagerClosed

TICK_S = 0.25
"""How often the loop proves that it moves on."""
RESOLVER_THREADS = 32
"""Name look-ups that can hang at the same time before another one has to wait."""


class Complaints:
    """Counts what went wrong and logs it, at most once per ``period_s`` and kind. Any thread."""

    def __init__(self, logger: logging.Logger, period_s: float = 10.0) -> None:
        self.count = 0
        self._logger = logger
        self._period_s = period_s
        self._lock = threading.Lock()
        self._next_s: dict[str, float] = {}

    def add(self, kind: str, error: BaseException | None) -> None:
        """Count one, and log it if this kind was not logged lately. ``kind`` is one of few fixed phrases."""
        with self._lock:
            self.count += 1
            count = self.count
        if self._due(kind):
            self._logger.error("%s (%d exceptions so far): %r", kind, count, error, exc_info=error)

    def note(self, kind: str, error: BaseException) -> None:
        """Log, as rarely, something that is to be expected: it isn't counted and needs no traceback."""
        if self._due(kind):
            self._logger.info("%s: %s", kind, error)

    def _due(self, kind: str) -> bool:
        now = monotonic()
        with self._lock:
            if now < self._next_s.get(kind, 0.0):
                return False
            self._next_s[kind] = now + self._period_s
            return True


class LoopThread:
    """Owns one asyncio loop and the thread that runs it.

    An exception, or even a ``SystemExit``, that reaches the loop is counted and logged, and the loop goes on.

    The thread also ends by itself when the main thread has ended: the interpreter waits for its threads *before* it
    runs atexit functions, so a server that nobody closed would keep a finished program alive for ever.

    on_tick: called on the loop every ``TICK_S`` seconds with the monotonic time. on_stop: awaited on the loop when the
    thread is told to end, for ``stop_limit_s`` seconds at the most; then what still runs there is cancelled.
    """

    def __init__(
        self,
        name: str,
        complaints: Complaints,
        *,
        on_tick: Callable[[float], None] | None = None,
        on_stop: Callable[[], Awaitable[None]] | None = None,
        stop_limit_s: float = 3.0,
    ) -> None:
        self._name = name
        self._complaints = complaints
        self._on_tick = on_tick
        self._on_stop = on_stop
        self._stop_limit_s = stop_limit_s
        self._lock = threading.Lock()  # guards _loop and _thread against a call that races with the end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._ending: asyncio.Task[None] | None = None
        self._progress_s = 0.0

    def start(self) -> None:
        """Start the thread; once only. Raises ``ManagerClosed`` if it was stopped before."""
        with self._lock:
            if self._stopping:
                raise ManagerClosed(f"{self._name} is closed")
            if self._thread is not None:
                return
            self._progress_s = monotonic()
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._run, args=(self._loop,), name=self._name)
            self._thread.start()

    def call(self, function: Callable[..., object], *args: Any) -> bool:
        """Run ``function(*args)`` on the loop soon. Any thread, never blocks; False if the thread has ended or is ending."""
        with self._lock:
            if self._stopping or self._loop is None:
                return False
            self._loop.call_soon_threadsafe(function, *args)
            return True

    def stop(self, deadline_s: float = 5.0) -> bool:
        """End the thread and wait for it; True if it has ended. Idempotent; from the thread itself it can't wait."""
        with self._lock:
            thread, loop = self._thread, self._loop
            if not self._stopping:
                self._stopping = True
                if loop is not None:
                    loop.call_soon_threadsafe(self._begin_ending)
        if thread is None:
            return True
        if thread is threading.current_thread():
            return False
        thread.join(deadline_s)
        return not thread.is_alive()

    @property
    def started(self) -> bool:
        """Whether ``start`` was called."""
        return self._thread is not None

    def health(self) -> dict[str, Any]:
        """``alive``, ``last_progress_age_s`` (seconds since the loop last moved on) and ``exceptions`` (survived so far)."""
        thread = self._thread
        alive = thread is not None and thread.is_alive()
        age = max(0.0, monotonic() - self._progress_s) if thread is not None else None
        return {"alive": alive, "last_progress_age_s": age, "exceptions": self._complaints.count}

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        # Look-ups of names run here. A hanging one can't be ended, so there are enough threads that it delays no other.
        executor = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix=f"{self._name}-names")
        loop.set_default_executor(executor)
        loop.set_exception_handler(self._loop_exception)
        loop.call_soon(self._tick, loop)
        try:
            while True:
                try:
                    loop.run_forever()
                except BaseException as error:  # noqa: BLE001 - even a SystemExit raised in a callback must not end it
                    self._complaints.add(f"{self._name}: the loop was interrupted", error)
                    sleep(0.05)  # should the loop itself be broken, then it must not eat a whole core
                if self._ending is not None and self._ending.done():
                    break
        finally:
            with self._lock:
                self._stopping = True
                self._loop = None
            executor.shutdown(wait=False, cancel_futures=True)
            loop.close()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(TICK_S, self._tick, loop)
        self._progress_s = monotonic()
        if self._on_tick is not None:
            try:
                self._on_tick(self._progress_s)
            except Exception as error:  # noqa: BLE001 - one bad tick must not take the next one with it
                self._complaints.add(f"{self._name}: the timer failed", error)
        if not threading.main_thread().is_alive():
            with self._lock:
                self._stopping = True
            self._begin_ending()

    def _begin_ending(self) -> None:
        if self._ending is None and self._loop is not None:
            self._ending = self._loop.create_task(self._end())
            self._ending.add_done_callback(lambda task: task.get_loop().stop())

    async def _end(self) -> None:
        if self._on_stop is not None:
            try:
                await asyncio.wait_for(self._on_stop(), self._stop_limit_s)
            except Exception as error:  # noqa: BLE001 - the end must come, whatever goes wrong on the way
                self._complaints.add(f"{self._name}: the end was not clean", error)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=1.0)

    def _loop_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._complaints.add(f"{self._name}: {context.get('message', 'an error in the loop')}", error)
