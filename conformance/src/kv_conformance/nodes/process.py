"""A node's process: forked from a process that has everything imported, asked and answered over a pipe, and stopped, killed and
restarted by its own process id.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from kv_conformance.nodes.preload import VARIABLE
from kv_conformance.outcomes import HarnessError
from kv_core import KVCoreError
from kv_core.registry.source import BACKENDS, scan

START_S = 60.0
_PR_SET_PDEATHSIG = 1


class NodeError(AssertionError):
    """A node raised what is no exception of kv-core, did not answer, or died. The message has its words and its stack."""


def prepare(backend: str) -> None:
    """Say what the parent of all nodes imports. Has effect before the first node is started."""
    sources = scan(BACKENDS).get(backend, ())
    os.environ[VARIABLE] = ",".join(source.module for source in sources)
    get_context("forkserver").set_forkserver_preload(["kv_conformance.nodes.preload"])


class Process:
    """One node. ``build`` is called in it with ``arguments``, and makes the object whose methods ``ask`` calls.

    name: for messages. environment: set before anything else is done. ``started`` must be called before the first ``ask``:
    so that several can start at the same time. Not for several threads at once.
    """

    def __init__(
        self, name: str, build: Callable[..., Any], arguments: tuple[Any, ...], environment: Mapping[str, str],
        patience_s: float,
    ) -> None:  # fmt: skip
        self.name = name
        self.patience_s = patience_s
        self.frozen = False
        self._owed = ""  # what it was told and has not answered
        context = get_context("forkserver")
        handle, log = tempfile.mkstemp(prefix=f"kv-conformance-{name}-", suffix=".log")
        os.close(handle)
        self._log = Path(log)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_main, args=(theirs, log, dict(environment), build, arguments), name=name
        )
        self._process.start()
        theirs.close()

    def started(self) -> None:
        """Wait until the node is there. Raises what its ``build`` raised; the process has ended then."""
        try:
            self.answer("start", START_S)
        except BaseException:
            self.end()
            raise

    # -- talking ---------------------------------------------------------------------------------------------------

    def ask(self, method: str, *args: Any, limit_s: float | None = None, **named: Any) -> Any:
        """Let the node call this method; what it returned. Exceptions of kv-core are raised here as they were there; any
        other, silence and death are a ``NodeError``.
        """
        self.tell(method, *args, **named)
        return self.answer(method, limit_s)

    def tell(self, method: str, *args: Any, **named: Any) -> None:
        """As ``ask``, without waiting: ``answer`` must follow before the next request."""
        if self._owed:
            raise NodeError(f"{self.name} has not come back from {self._owed}() yet, so {method}() can't be asked")
        try:
            self._pipe.send((method, args, named))
            self._owed = method
        except (BrokenPipeError, ConnectionResetError):
            raise self._died(method) from None

    def answer(self, method: str, limit_s: float | None = None) -> Any:
        """What the node answers."""
        limit = (limit_s or 0.0) + self.patience_s
        ready = wait([self._pipe, self._process.sentinel], limit)
        try:
            if self._pipe not in ready and not self._pipe.poll():
                if ready:
                    raise self._died(method)
                raise NodeError(f"{self.name} did not come back from {method}() within {limit:.0f} s. {self.stacks()}")
            good, value = self._pipe.recv()
            self._owed = ""
        except (EOFError, ConnectionResetError):
            raise self._died(method) from None
        if good:
            return value
        if isinstance(value, (KVCoreError, AssertionError, HarnessError)):
            raise value
        raise NodeError(f"{self.name}: {method}() raised {_gist(value)}\n{value}")

    def _died(self, method: str) -> NodeError:
        self._process.join(5.0)
        code = self._process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
        return NodeError(f"the process of {self.name} ended ({how}) during {method}(). {self.words()}")

    # -- the process -----------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None, "it was started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.join(START_S)

    def freeze(self) -> None:
        """SIGSTOP, and wait until all of its threads stand still."""
        os.kill(self.pid, signal.SIGSTOP)
        self.frozen = True
        tasks = Path(f"/proc/{self.pid}/task")
        deadline = monotonic() + START_S
        while not all(_state(task) in "TtZX" for task in tasks.iterdir()):
            if monotonic() > deadline:
                raise HarnessError(f"{self.name} (process {self.pid}) does not stop")
            sleep(0.001)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)
        self.frozen = False

    def words(self) -> str:
        """The end of what the process wrote to its standard output and error."""
        with contextlib.suppress(OSError):  # the file went with the node
            text = self._log.read_text(encoding="utf-8", errors="replace").strip()
            return f"It wrote:\n{text[-4000:]}" if text else "It wrote nothing."
        return ""

    def stacks(self) -> str:
        """Where its threads are now."""
        if self.frozen or not self.alive:
            return ""
        before = self._log.stat().st_size
        os.kill(self.pid, signal.SIGUSR1)
        deadline = monotonic() + 2.0
        while self._log.stat().st_size == before and monotonic() < deadline:
            sleep(0.01)
        sleep(0.05)  # the rest of the text; what is missing of it does no harm
        return f"Its threads:\n{self.words()}"

    def end(self) -> None:
        """Kill it, whatever it does, and forget it."""
        with contextlib.suppress(ProcessLookupError):
            if self._process.is_alive():
                self._process.kill()
        self._process.join(START_S)
        self._pipe.close()
        self._log.unlink(missing_ok=True)


def _gist(stack: str) -> str:
    """The last line of a traceback, and the last place in it: where a backend's author looks first."""
    lines = stack.strip().splitlines()
    places = [line.strip() for line in lines if line.lstrip().startswith("File ")]
    return f"{lines[-1]} ({places[-1]})" if places else lines[-1]


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except OSError:  # it ended just now
        return "X"


def _main(
    pipe: Connection, log: str, environment: Mapping[str, str], build: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """What a node's process does: build its object, then call what it is asked to until the suite goes away."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not closed: it is the process's output until it ends.
    target = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
    faulthandler.enable(file=sys.stderr)
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
    os.environ.update(environment)
    server = _attempt(pipe, lambda: build(*arguments), show=False)
    if server is None:
        return
    serve = getattr(server, "serve", None)
    if serve is not None:
        serve(pipe, handle)
    else:
        with contextlib.suppress(EOFError, ConnectionResetError):  # the suite went away
            while True:
                handle(pipe, server, pipe.recv())
    os._exit(0)  # engines have been seen to crash at interpreter exit; what close() leaves is checked by itself


def handle(pipe: Connection, server: Any, request: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
    """Do what was asked and answer."""
    method, args, named = request
    _attempt(pipe, lambda: getattr(server, method)(*args, **named), show=True)


def _attempt(pipe: Connection, action: Callable[[], Any], *, show: bool) -> Any:
    try:
        value = action()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the suite has to know
        known = isinstance(error, (KVCoreError, AssertionError, HarnessError))
        text = "".join(traceback.format_exception(error))
        try:
            pipe.send((False, error if known else text))
        except Exception:  # noqa: BLE001 - an exception that can't be sent
            pipe.send((False, text))
        return None
    pipe.send((True, value if show else None))
    return value
