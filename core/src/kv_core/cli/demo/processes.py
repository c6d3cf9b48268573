"""The ranks' processes: started from this interpreter, spoken to over pipes that never block, ended by their pid."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from typing import IO, TYPE_CHECKING

from kv_core.cli.demo.lines import FromRank, LineReader, ToRank, encode
from kv_core.cli.demo.settings import RankSettings
from kv_core.contract.enums import Role

if TYPE_CHECKING:
    import msgspec

RANK_MODULE = "kv_core.cli.demo.rank"
TAIL_LINES = 12
"""Lines of a rank's standard error that are kept, to be shown if it dies."""
REAP_S = 5.0
MAX_LAST_READS = 64


class RankDied(Exception):
    """A rank's process ended though nobody had asked it to. The message says how, and what it wrote last."""


class RankProcess:
    """One rank's process. All methods are for one thread, and none waits but ``end``."""

    def __init__(self, role: Role, settings: RankSettings) -> None:
        self.role = role
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and a module of this package
            [sys.executable, "-m", RANK_MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            # Ctrl-C is for the router, which ends the ranks; a rank whose router is gone sees its pipe closed.
            start_new_session=True,
        )
        assert self._process.stdin is not None, "asked for above"
        assert self._process.stdout is not None, "asked for above"
        assert self._process.stderr is not None, "asked for above"
        self.stdin: IO[bytes] = self._process.stdin
        self.stdout: IO[bytes] = self._process.stdout
        self.stderr: IO[bytes] = self._process.stderr
        for pipe in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(pipe.fileno(), False)
        self._unsent = bytearray()
        self._reader: LineReader[FromRank] = LineReader(FromRank)  # type: ignore[arg-type]
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._partial = b""
        self.closed = False
        self._write(settings)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def unsent(self) -> bool:
        """Whether the pipe was full: call ``flush`` when it can be written again."""
        return bool(self._unsent)

    def send(self, message: ToRank) -> None:
        """Queue a message and write what the pipe takes."""
        self._write(message)

    def _write(self, message: msgspec.Struct) -> None:
        self._unsent += encode(message)
        self.flush()

    def flush(self) -> None:
        """Write what the pipe takes of what is queued."""
        try:
            while self._unsent:
                written = os.write(self.stdin.fileno(), self._unsent)
                del self._unsent[:written]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent.clear()  # it has died: its standard output says so too, and there it is dealt with

    def receive(self) -> list[FromRank]:
        """Messages that have come. ``closed`` is True from the end of the stream on: the process has ended, or will."""
        data = _read(self.stdout)
        if data is None:
            return []
        self.closed = not data
        try:
            return self._reader.feed(data)
        except ValueError as error:
            raise RankDied(f"the {self.role.value} rank (pid {self.pid}) wrote what is no message: {error}") from error

    def read_errors(self) -> bool:
        """Keep the last lines of what it writes to its standard error; False at the end of the stream."""
        data = _read(self.stderr)
        if data:
            *lines, self._partial = (self._partial + data).split(b"\n")
            self._tail.extend(line.decode(errors="replace") for line in lines if line.strip())
        return data is None or bool(data)

    def died(self) -> RankDied:
        """Why it ended, for whoever reads it: its exit status or signal, and its last words."""
        self.wait(REAP_S)
        self.end()
        for _ in range(MAX_LAST_READS):  # what it left in the pipe; a grandchild might hold that open and write on
            if not self.read_errors():
                break
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit status {code}"
        words = list(self._tail) + ([self._partial.decode(errors="replace")] if self._partial.strip() else [])
        said = "; it said nothing" if not words else ". Its last lines were:\n  " + "\n  ".join(words)
        return RankDied(f"the {self.role.value} rank (pid {self.pid}) {how}{said}")

    def kill(self) -> None:
        """SIGKILL, and wait for the process to be gone."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """End it by force unless it has ended, and reap it. Idempotent."""
        if self._process.poll() is None:
            self.kill()

    def wait(self, timeout_s: float) -> None:
        """Let it end by itself, for so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # whoever closes it ends it
            self._process.wait(timeout_s)

    def close(self) -> None:
        """Make sure that it is gone, and close the pipes. Idempotent."""
        self.end()
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()


class RankSelector:
    """Waits for whatever any rank has to say."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def add(self, rank: RankProcess) -> None:
        """Listen to a rank."""
        self._selector.register(rank.stdout, selectors.EVENT_READ, rank)
        self._selector.register(rank.stderr, selectors.EVENT_READ, rank)

    def remove(self, rank: RankProcess) -> None:
        """Stop listening, before the rank is closed."""
        for pipe in (rank.stdout, rank.stderr, rank.stdin):
            with contextlib.suppress(
                KeyError
            ):  # a pipe that has ended, or into which all could be written, is not there
                self._selector.unregister(pipe)

    def wait(self, ranks: list[RankProcess], timeout_s: float) -> list[tuple[RankProcess, list[FromRank]]]:
        """Messages of the ranks that said something, or whose pipe closed, within ``timeout_s`` seconds."""
        for rank in ranks:
            if rank.unsent and rank.stdin not in self._selector.get_map():
                self._selector.register(rank.stdin, selectors.EVENT_WRITE, rank)
        heard: list[tuple[RankProcess, list[FromRank]]] = []
        for key, _ in self._selector.select(timeout_s):
            rank = key.data
            if key.fileobj is rank.stdout:
                heard.append((rank, rank.receive()))
                if rank.closed:
                    self._selector.unregister(rank.stdout)
            elif key.fileobj is rank.stderr:
                if not rank.read_errors():
                    self._selector.unregister(rank.stderr)
            else:
                rank.flush()
                if not rank.unsent:
                    self._selector.unregister(rank.stdin)
        return heard

    def close(self) -> None:
        """Listen to nobody."""
        self._selector.close()


def _read(pipe: IO[bytes]) -> bytes | None:
    try:
        return os.read(pipe.fileno(), 65_536)
    except BlockingIOError:
        return None
