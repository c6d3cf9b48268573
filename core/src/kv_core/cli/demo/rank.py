"""One rank of the demo: ``python -m kv_core.cli.demo.rank``, started by the router, told everything through its standard input.

Reads lines of ``lines.ToRank`` (before them one of ``RankSettings``) and writes lines of ``lines.FromRank``. Ends when
it is told to, or when the router's end of the pipe closes: a rank never outlives its router.
"""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Sequence
from time import monotonic
from urllib.parse import urlsplit

import msgspec
import numpy as np

from kv_core.cli.demo.engine_decode import DecodeEngine
from kv_core.cli.demo.engine_prefill import PrefillEngine
from kv_core.cli.demo.lines import FromRank, LineReader, OpenRoom, PeerDied, Ready, Stopped, ToRank, encode
from kv_core.cli.demo.metrics import RankMetrics
from kv_core.cli.demo.pages import Content, Memory, Shape
from kv_core.cli.demo.settings import AUX_BYTES, RankSettings
from kv_core.cli.demo.tracing import RankTrace
from kv_core.contract.enums import Role
from kv_core.contract.failures import KVCoreError
from kv_core.contract.interfaces import BaseKVManager
from kv_core.registry import load_backend
from kv_core.runtime.flight_log import LOGGER as FLIGHT_LOGGER

IDLE_S = 0.001
"""How long an engine without work lets its processor go. An engine with a model has work for this time."""
DRAIN_S = 5.0
"""How long a stopping rank waits for pages that may still be written."""
EXIT_BROKEN = 1
EXIT_ABANDONED = 3


class Pipes:
    """The rank's two ends of its pipes to the router."""

    def __init__(self) -> None:
        # Native libraries write to file descriptor 1 as they like: give them standard error instead.
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._rest = b""
        self._commands: LineReader[ToRank] = LineReader(ToRank)  # type: ignore[arg-type]
        self.closed = False

    def settings(self) -> RankSettings:
        """The first line. Waits for it."""
        while b"\n" not in self._rest:
            data = os.read(0, 65_536)
            if not data:
                raise EOFError("the router closed the pipe before it sent the settings")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return msgspec.json.decode(line, type=RankSettings)

    def commands(self, wait_s: float) -> Sequence[ToRank]:
        """What the router has said, waiting for the first of it at most ``wait_s`` seconds."""
        if self._rest:
            data, self._rest = self._rest, b""
        elif select.select([0], [], [], wait_s)[0]:
            data = os.read(0, 65_536)
            self.closed = not data
        else:
            return ()
        return self._commands.feed(data)

    def send(self, message: FromRank) -> None:
        """Write a message to the router, which always reads."""
        data = memoryview(encode(message))
        while data:
            data = data[os.write(self._out, data) :]


def build_engine(
    pipes: Pipes, settings: RankSettings, manager: BaseKVManager, memory: Memory
) -> PrefillEngine | DecodeEngine:
    """The engine of this rank's role. Both roles draw their page numbers from streams of their own."""
    shape = memory.shape
    content = Content(settings.seed, max(shape.item_bytes, shape.aux_bytes))
    stream = np.random.SeedSequence([settings.seed, list(Role).index(settings.role), os.getpid()])
    random = np.random.default_rng(stream)
    if settings.role is Role.PREFILL:
        return PrefillEngine(pipes.send, manager, memory, content, random, settings.pages, settings.chunks)
    return DecodeEngine(pipes.send, manager, memory, content, random, settings.pages)


def serve(pipes: Pipes, engine: PrefillEngine | DecodeEngine) -> bool:
    """The engine's loop: commands in, one pass after the other. True if told to stop, False if the router is gone."""
    busy = True
    while not pipes.closed:
        for command in pipes.commands(0.0 if busy else IDLE_S):
            if isinstance(command, OpenRoom):
                engine.open(command)
            elif isinstance(command, PeerDied):
                engine.abort_unmet()
            else:
                return True
        busy = engine.step()
    return False


def drain(pipes: Pipes, engine: PrefillEngine | DecodeEngine) -> None:
    """Wait until all pages are safe again, or the deadline; the router may still die meanwhile."""
    deadline = monotonic() + DRAIN_S
    while engine.quarantine.held and monotonic() < deadline and not pipes.closed:
        pipes.commands(IDLE_S)
        engine.step()


def stopped(engine: PrefillEngine | DecodeEngine, transport: str) -> Stopped:
    """The last message."""
    stray = engine.stray_bytes + engine.free_bytes_touched() if isinstance(engine, DecodeEngine) else 0
    return Stopped(engine.quarantine.pages, engine.quarantine.longest_s, stray, transport)


def control_port(manager: BaseKVManager) -> int:
    """The port of the manager's control socket, or 0 for a manager that does not tell."""
    return urlsplit(str(getattr(manager, "endpoint", ""))).port or 0


def run(pipes: Pipes) -> int:
    """Everything between the first line and the last."""
    settings = pipes.settings()
    backend = load_backend(settings.backend)
    shape = Shape(settings.layers, settings.page_bytes, settings.num_pages, settings.num_rows, AUX_BYTES)
    memory = Memory(shape)
    metrics = RankMetrics(backend.info, settings.role, settings.metrics_port)
    trace = RankTrace(settings.role, settings.trace)
    observers = [*metrics.observers, *trace.observers]
    with (
        metrics,
        trace,
        backend.create_manager(settings.role, memory.args(), settings.config(), observers=observers) as manager,
        metrics.watching(manager),
    ):
        engine = build_engine(pipes, settings, manager, memory)
        pipes.send(Ready(os.getpid(), control_port(manager), metrics.url))
        if not serve(pipes, engine):
            return EXIT_ABANDONED
        drain(pipes, engine)
        pipes.send(stopped(engine, transport_of(manager)))
    return 0


def transport_of(manager: BaseKVManager) -> str:
    """The fabric that is really in use to each peer, as far as the manager's snapshot tells; else empty."""
    fabrics = manager.snapshot().get("fabrics", {})
    return ", ".join(sorted(set(fabrics.values())))


def main() -> int:
    """The exit status."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    # The report says why rooms failed; their whole histories would push a dying rank's last words out of what is kept.
    logging.getLogger(FLIGHT_LOGGER).setLevel(logging.CRITICAL)
    try:
        return run(Pipes())
    except BrokenPipeError:
        return EXIT_ABANDONED
    except KVCoreError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return EXIT_BROKEN


if __name__ == "__main__":
    sys.exit(main())
