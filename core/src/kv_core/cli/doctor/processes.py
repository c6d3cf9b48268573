"""The doctor's child processes: each does one job, says how it goes, and may crash or hang without taking the doctor along."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType
from typing import IO, TYPE_CHECKING, TypeVar

import msgspec

from kv_core.cli.doctor.jobs import Job, News

if TYPE_CHECKING:
    from typing_extensions import Self

CHILD = "kv_core.cli.doctor.child"
TAIL_BYTES = 2_000
END_S = 15.0
"""How long a child may take to end by itself once it is told to."""
_T = TypeVar("_T")
_DECODER: msgspec.json.Decoder[News] = msgspec.json.Decoder(News)


@dataclass(frozen=True)
class Outcome:
    """What a child said, and how it ended. ``ended``: empty if it ended well, else a clause ("was killed by SIGSEGV")."""

    news: list[News] = field(default_factory=list)
    ended: str = ""
    hung: bool = False
    tail: str = ""

    def every(self, kind: type[_T]) -> list[_T]:
        """All news of a kind."""
        return [each for each in self.news if isinstance(each, kind)]

    def first(self, kind: type[_T]) -> _T | None:
        """The first news of a kind."""
        return next(iter(self.every(kind)), None)


class Child:
    """A child at its job. ``read`` waits for news, ``end`` closes its input, waits, and ends it by force if it must."""

    def __init__(self, job: Job) -> None:
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed in end()
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and a module of this package
            [sys.executable, "-m", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, bufsize=0
        )
        assert self._process.stdin is not None, "asked for above"
        assert self._process.stdout is not None, "asked for above"
        self._stdin: IO[bytes] = self._process.stdin
        self._stdout: IO[bytes] = self._process.stdout
        self._rest = b""
        self._news: list[News] = []
        self._outcome: Outcome | None = None
        with contextlib.suppress(BrokenPipeError):  # it has ended already: its output says so
            self._stdin.write(msgspec.json.encode(job) + b"\n")

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def read(self, deadline: float) -> list[News] | None:
        """News that came, at least one, unless ``deadline`` (monotonic) did first: then []. None: its output has ended."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline - monotonic())):
                data = os.read(self._stdout.fileno(), 65_536)
                if not data:
                    return None
                *lines, self._rest = (self._rest + data).split(b"\n")
                news = [_DECODER.decode(line) for line in lines if line]
                self._news += news
                if news:
                    return news
        return []

    def wait_for(self, kind: type[_T], timeout_s: float) -> _T | None:
        """The first news of this kind; None if it did not come in time, or the child ended."""
        deadline = monotonic() + timeout_s
        while news := self.read(deadline):
            for each in news:
                if isinstance(each, kind):
                    return each
        return None

    def run(self, timeout_s: float) -> Outcome:
        """Let it do its job to the end."""
        deadline = monotonic() + timeout_s
        while self.read(deadline):
            pass
        return self.end(hung=monotonic() >= deadline)

    def end(self, *, hung: bool = False) -> Outcome:
        """Close its input, read what it says to the end, reap it. Idempotent."""
        if self._outcome is None:
            with contextlib.suppress(BrokenPipeError):  # gone already
                self._stdin.close()
            deadline = monotonic() + (0.0 if hung else END_S)
            while self.read(deadline):
                pass
            self._outcome = self._reap(deadline, hung=hung)
        return self._outcome

    def _reap(self, deadline: float, *, hung: bool) -> Outcome:
        try:
            self._process.wait(max(0.05, deadline - monotonic()))
        except subprocess.TimeoutExpired:
            hung = True
            self._process.kill()
            self._process.wait()
        code = self._process.returncode
        how = ""
        if hung:
            how = "did not end in time and was killed"
        elif code:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        size = os.fstat(self._log.fileno()).st_size
        tail = os.pread(self._log.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace").strip()
        self._log.close()
        self._stdout.close()
        return Outcome(self._news, how, hung, tail)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(hung=exc_type is not None)


def run(job: Job, timeout_s: float) -> Outcome:
    """Let a child do a job. It has ``timeout_s`` seconds."""
    with Child(job) as child:
        return child.run(timeout_s)
