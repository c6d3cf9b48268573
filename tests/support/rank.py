"""Rank processes as a test sees them: commands with replies, outcomes of rooms, and signals."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tests.support.memory import Shape
from tests.support.orders import Order, Outcome
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).resolve().parents[2]
REPLY_LIMIT_S = 30.0


class RankError(AssertionError):
    """A command failed in the rank process, or the process is gone."""


class RankProcess:
    """One ``tests.support.rank_main``, or a program that extends it. ``ended`` and ``released`` fill up by themselves, by room number."""

    def __init__(self, role: str, *, name: str = "", program: str = "tests.support.rank_main") -> None:
        self.role = role
        self.name = name or role
        self.endpoint = ""
        self.instance_id = ""
        self.told: dict[str, Any] = {}
        self.ended: dict[int, Outcome] = {}
        self.released: dict[int, Outcome] = {}
        self._ids = itertools.count(1)
        self._replies: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._gone = threading.Event()
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, name=f"rank-{self.name}")
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    @property
    def port(self) -> int:
        """Of the control socket."""
        return int(self.endpoint.rpartition(":")[2])

    # -- commands --------------------------------------------------------------------------------------------------

    def begin(self, do: str, **arguments: Any) -> int:
        """Send a command without waiting; the number for ``reply``."""
        number = next(self._ids)
        self._replies[number] = queue.SimpleQueue()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"id": number, "do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise RankError(f"{self.name} is gone: {error}\n{self.log()}") from error
        return number

    def reply(self, number: int, limit_s: float = REPLY_LIMIT_S) -> Any:
        """The reply to a command."""
        try:
            answer = self._replies[number].get(timeout=limit_s)
        except queue.Empty:
            raise RankError(f"{self.name} did not answer within {limit_s:g} s\n{self.log()}") from None
        finally:
            del self._replies[number]
        if "ok" not in answer:
            raise RankError(f"{self.name}: {answer.get('error', 'gone')}\n{self.log()}")
        return answer["ok"]

    def call(self, do: str, *, limit_s: float = REPLY_LIMIT_S, **arguments: Any) -> Any:
        """Send a command and wait for its reply."""
        return self.reply(self.begin(do, **arguments), limit_s)

    def start(
        self, shape: Shape, *, args: dict[str, Any] | None = None, config: dict[str, Any] | None = None,
        backend: str = "fake", seed: int = 0, **more: Any,
    ) -> RankProcess:  # fmt: skip
        """Open the manager. ``more``: what an extended program takes."""
        self.told = told = self.call(
            "start", role=self.role, shape=asdict(shape), args=args or {}, config=config or {}, backend=backend,
            seed=seed, **more,
        )  # fmt: skip
        self.endpoint, self.instance_id = told["endpoint"], told["instance_id"]
        return self

    def open(self, orders: Iterable[Order]) -> None:
        """Take orders up."""
        self.call("open", orders=[order.to_json() for order in orders])

    # -- signals ---------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """End it at once (SIGKILL), and reap it."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it, gently if it still answers. Idempotent. Raises ``RankError`` if it had to be killed."""
        try:
            if self.alive:
                self._end()
        finally:
            self._reader.join(20)
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):  # the process is gone, and what was unsent with it
                    if pipe is not None:
                        pipe.close()
            if not self._log.closed:
                self._log.close()

    def _end(self) -> None:
        self.thaw()
        with contextlib.suppress(OSError):  # gone already
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            stacks = self.stacks()
            self.kill()
            raise RankError(f"{self.name} did not end by itself:\n{stacks}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def log(self, last: int = 4_000) -> str:
        """The end of what it wrote to stderr."""
        if self._log.closed:
            return ""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), last, max(0, size - last)).decode(errors="replace")

    def stacks(self) -> str:
        """Where its threads stand."""
        before = len(self.log(1 << 24))
        os.kill(self.pid, signal.SIGUSR1)
        with contextlib.suppress(AssertionError):  # it may be too far gone for that, too
            wait_until(lambda: len(self.log(1 << 24)) > before, "the stacks", 5)
        return self.log(20_000)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # cut short by a kill
            if "ended" in message:
                outcome = Outcome(**message["ended"])
                self.ended[outcome.room] = outcome
            elif "released" in message:
                outcome = Outcome(**message["released"])
                self.released[outcome.room] = outcome
            else:
                waiting = self._replies.get(message["id"])
                if waiting is not None:
                    waiting.put(message)
        self._gone.set()
        for waiting in list(self._replies.values()):
            waiting.put({})
