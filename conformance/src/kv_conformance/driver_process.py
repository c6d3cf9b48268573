"""One process of pytest: started, watched through the results file, and ended with everything that it left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kv_conformance.catalog import Check
from kv_conformance.results import Ended, Reader, Results, ids_of

LOOK_S = 0.05
STACKS_S = 5.0


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds, before the process counts as hung.

    grace_s: for a check beyond its own limit, so that it can be ended from inside, and taken down. idle_s: without any
    check: imports, collection, the end.
    """

    grace_s: float = 90.0
    idle_s: float = 300.0


@dataclass(frozen=True)
class End:
    """How the process ended. overdue: checks that were over their time when it was killed. idle: killed without one."""

    status: int
    overdue: tuple[str, ...] = ()
    idle: bool = False

    @property
    def how(self) -> str:
        """In words."""
        if self.idle:
            return "killed, because it did nothing any more"
        if self.status < 0:
            with contextlib.suppress(ValueError):  # a number without a name, of a real-time signal
                return f"signal {-self.status}, {signal.Signals(-self.status).name}"
            return f"signal {-self.status}"
        return f"exit status {self.status}"


@dataclass
class Watch:
    """Follows the results file while the process runs. ``told``: hears of each check that ends."""

    reader: Reader
    results: Results
    checks: Sequence[Check]
    limits: Limits
    told: Callable[[str, Ended], None]
    _deadlines: dict[str, float] = field(default_factory=dict)
    _news: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Take in what is new. Raises ``WrongResults``."""
        ids = ids_of(self.checks)
        for record in self.reader.records():
            self._news = time.monotonic()
            ended = self.results.take(record, ids)
            if ended:
                self.told(ended, self.results.ended[ended])
        limits = {check.id: check.limit_s for check in self.checks}
        for node, check in self.results.open.items():
            self._deadlines.setdefault(
                node, self._news + self._slowness * (limits.get(check, 0.0) + self.limits.grace_s)
            )
        self._deadlines = {node: deadline for node, deadline in self._deadlines.items() if node in self.results.open}

    def overdue(self) -> tuple[str, ...]:
        """Checks that should have ended."""
        now = time.monotonic()
        return tuple(self.results.open[node] for node, deadline in self._deadlines.items() if now > deadline)

    def idle(self) -> bool:
        """Whether nothing happens any more, and no check is running that could be blamed."""
        return not self.results.open and time.monotonic() > self._news + self._slowness * self.limits.idle_s

    @property
    def _slowness(self) -> float:
        return float((self.results.subject or {}).get("slowness", 1.0))


def run(command: Sequence[str], environment: Mapping[str, str], log: Path, watch: Watch) -> End:
    """Run pytest to its end, or to that of its time. Its output is appended to ``log``. Raises ``WrongResults``."""
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, and pytest
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    overdue: tuple[str, ...] = ()
    idle = False
    try:
        while not _has_ended(process):
            watch.look()
            overdue, idle = watch.overdue(), watch.idle()
            if overdue or idle:
                _ask_for_stacks(process)
                break
            time.sleep(LOOK_S)
    finally:
        # Its group is its own: it, and what it has started and not ended. Not reaped yet, so the number is still its own.
        with contextlib.suppress(ProcessLookupError):  # nobody is left in it
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    watch.look()
    return End(status, overdue, idle)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; it is left for ``wait``."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _ask_for_stacks(process: subprocess.Popen[bytes]) -> None:
    """Let it write where its threads stand (faulthandler is on), and end by that."""
    process.send_signal(signal.SIGABRT)
    limit = time.monotonic() + STACKS_S
    while not _has_ended(process) and time.monotonic() < limit:
        time.sleep(LOOK_S)
