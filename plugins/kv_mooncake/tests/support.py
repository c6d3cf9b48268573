"""Two ends of the Mooncake transport, the receiving one in a process of its own that can be killed and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from kv_core import Direction, KVArgs, Pool, Role, TransferConfig
from kv_core.contract.transport import PeerKey, Prepared, Transfer, TransferProgress, TransportContext
from kv_core.layout import Batch, MemoryLayout, make_batch, plan_transfer
from kv_mooncake import MooncakeTransport, preflight
from kv_mooncake.transport import MooncakePrepared

if TYPE_CHECKING:
    from typing_extensions import Self

try:
    preflight()
except ImportError as missing:
    pytest.skip(f"the Mooncake engine can't be loaded here: {missing}", allow_module_level=True)

LIMIT_S = 60.0
POISON = 0xEE
ROOT = Path(__file__).parents[3]
SHAPE = {"buffers": 4, "items": 64, "item_len": 4096}
STATE = (2, 8, 1000)
AUX = (3, 16, 64)


class End:
    """One transport with a KV pool, a state pool and an auxiliary pool; arrays of shape (buffers, items, item_len)."""

    def __init__(
        self, role: Role, *, buffers: int = 4, items: int = 64, item_len: int = 4096, fill: int | None = None,
        seed: int = 0, options: Any = None, direction: Any = Direction.WRITE,
    ) -> None:  # fmt: skip
        random = np.random.default_rng(seed)

        def memory(*shape: int) -> npt.NDArray[np.uint8]:
            return random.integers(1, 0xEE, shape, np.uint8) if fill is None else np.full(shape, fill, np.uint8)

        self.pages, self.state, self.aux = memory(buffers, items, item_len), memory(*STATE), memory(*AUX)
        self.args = KVArgs(pool("kv", self.pages), pool("aux", self.aux), (pool("mamba", self.state),))
        self.layout = MemoryLayout.of(self.args)
        self.name = uuid.uuid4().hex
        config = TransferConfig(options=dict(options or {"protocol": "tcp"}))
        self.transport = MooncakeTransport(TransportContext(role, self.name, config, direction))
        try:
            self.transport.register_memory(self.layout.regions())
        except BaseException:
            self.transport.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()

    @property
    def descriptor(self) -> bytes:
        """See ``Transport``."""
        return self.transport.local_descriptor()

    def meet(self, other: End | RemoteEnd, generation: int = 1) -> MooncakePrepared:
        """Make the other end known here."""
        key = PeerKey(other.name, generation)
        self.transport.add_peer(key, other.descriptor)
        return self.transport.prepare(key, self.plan(other))

    def plan(self, other: End | RemoteEnd) -> Any:
        """What the two layouts have to do with each other."""
        place = self.args.topology
        return plan_transfer(self.layout, other.layout, local_topology=place, remote_topology=place)

    def write(self, prepared: Prepared, local: npt.ArrayLike, remote: npt.ArrayLike) -> TransferProgress:
        """Submit these pages, to be written or read; how it went."""
        return self.finish(self.transport.submit(prepared, batch_of(prepared, local, remote)))

    def finish(self, transfer: Transfer) -> TransferProgress:
        """Drive until it is no longer pending."""
        deadline = time.monotonic() + LIMIT_S
        while not (records := list(self.transport.progress([transfer]))):
            assert time.monotonic() < deadline, f"still pending after {LIMIT_S} s"
            self.transport.wait(0.002)  # short: a test may do this on several threads, of which one hears the bell
        return records[0]

    def look(self, transfer: Transfer) -> TransferProgress:
        """Its record now: it is not pending."""
        (record,) = self.transport.progress([transfer])
        return record


def pool(name: str, memory: npt.NDArray[np.uint8]) -> Pool:
    """The pool of an array of shape (buffers, items, item_len)."""
    addresses = [int(buffer.__array_interface__["data"][0]) for buffer in memory]
    return Pool.uniform(name, addresses, memory.shape[2], memory.shape[1])


def batch_of(
    prepared: Prepared, local: npt.ArrayLike, remote: npt.ArrayLike, *, state: Any = None, aux: Any = None
) -> Batch:
    """A batch of KV pages, and of pairs (local, remote) of state items and of auxiliary rows."""

    def pair(indices: Any) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        return np.asarray(indices[0], np.uint64), np.asarray(indices[1], np.uint64)

    states = {} if state is None else {"mamba": pair(state)}
    return make_batch(prepared.plan, (*pair((local, remote)), None), states, aux)


class Watched:
    """The engine, with an event for its having the last copy of something under way."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.under_way = threading.Event()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._engine, name)
        if name not in {"transfer_submit_write", "batch_transfer_async_read"}:
            return found

        def posts(*copies: Any) -> Any:
            posted = found(*copies)
            self.under_way.set()
            return posted

        return posts


def in_background(
    end: End, prepared: Prepared, local: npt.ArrayLike, remote: npt.ArrayLike
) -> tuple[threading.Thread, list[TransferProgress]]:
    """A transfer on a thread of its own, and its record to come; returns when the engine has it under way."""
    watched: Any = Watched(end.transport._mover._engine)
    end.transport._mover._engine = watched
    records: list[TransferProgress] = []
    thread = threading.Thread(target=lambda: records.append(end.write(prepared, local, remote)))
    thread.start()
    assert watched.under_way.wait(LIMIT_S)
    return thread, records


class RemoteEnd:
    """The other end, in another process: it receives, or with a ``fill`` of None has bytes to be read."""

    def __init__(self, settings: Mapping[str, Any] = SHAPE, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "plugins.kv_mooncake.tests.remote", json.dumps(dict(settings))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, **(environment or {})}
        )
        told = json.loads(self._line())
        self.name = told["name"]
        self.descriptor = bytes.fromhex(told["descriptor"])
        self.shape = (settings["buffers"], settings["items"], settings["item_len"])
        shapes = {"kv": self.shape, "aux": AUX, "mamba": STATE}
        pools = {
            name: Pool.uniform(name, told["addresses"][name], shape[2], shape[1]) for name, shape in shapes.items()
        }
        self.layout = MemoryLayout.of(KVArgs(pools["kv"], pools["aux"], (pools["mamba"],)))

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        line: bytes = self.process.stdout.readline()
        return line

    def _say(self, request: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(request.encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, request: str) -> Any:
        """Let the process do something; its answer."""
        self._say(request)
        return json.loads(self._line())

    def fetch(self, name: str = "kv") -> npt.NDArray[np.uint8]:
        """A pool's bytes as they are there."""
        shape = {"kv": self.shape, "aux": AUX, "mamba": STATE}[name]
        self._say(f"fetch {name}")
        assert self.process.stdout is not None
        data = self.process.stdout.read(int(np.prod(shape)))
        return np.frombuffer(data, np.uint8).reshape(shape)

    def kill(self) -> None:
        """kill -9, and wait until it has gone."""
        self.process.kill()
        self.process.wait(LIMIT_S)

    def stop(self) -> None:
        """Stop it, and wait until all of its threads have stopped."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")
        wait_until(lambda: all(_state(task) == "T" for task in tasks.iterdir()))

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.resume()
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def _state(task: Path) -> str:
    return (task / "stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]


def wait_until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait for a condition; fail loudly after the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not so after {limit_s} s"
        time.sleep(0.005)


def expected(
    source: npt.NDArray[np.uint8], shape: Sequence[int], local: npt.ArrayLike, remote: npt.ArrayLike
) -> npt.NDArray[np.uint8]:
    """What a poisoned pool looks like after these items were written."""
    target = np.full(shape, POISON, np.uint8)
    target[:, np.asarray(remote, np.intp)] = source[:, np.asarray(local, np.intp)]
    return target
