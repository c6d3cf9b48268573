"""Two ends: one in this process, the receiving one in a process of its own that can be stopped, killed and asked."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kv_core import Direction, KVArgs, Pool, Role, TransferConfig
from kv_core.contract.transport import PeerKey, Transfer, TransferProgress, TransportContext
from kv_core.layout import Batch, MemoryLayout, make_batch, plan_transfer
from kv_nixl import NixlTransport
from kv_nixl.transport import NixlPrepared, NixlTransfer

if TYPE_CHECKING:
    from typing_extensions import Self

LIMIT_S = 60.0
POISON = 0xEE
FABRICS = {"cma": {}, "tcp": {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"}}


class Memory:
    """Pools in host memory. ``arrays``: by pool, uint8 of shape (buffers, items, item_len)."""

    def __init__(self, shapes: Mapping[str, tuple[int, int, int]], seed: int | None) -> None:
        order = np.random.default_rng(seed)
        self.arrays: dict[str, npt.NDArray[np.uint8]] = {
            name: np.full(shape, POISON, np.uint8) if seed is None else order.integers(1, 200, shape, np.uint8)
            for name, shape in shapes.items()
        }
        pools = {name: self._pool(name, array) for name, array in self.arrays.items()}
        states = tuple(pool for name, pool in pools.items() if name not in ("kv", "aux"))
        self.args = KVArgs(pools["kv"], pools.get("aux"), states)
        self.layout = MemoryLayout.of(self.args)

    @staticmethod
    def _pool(name: str, array: npt.NDArray[np.uint8]) -> Pool:
        addresses = [int(buffer.__array_interface__["data"][0]) for buffer in array]
        return Pool.uniform(name, addresses, array.shape[2], array.shape[1])


class End:
    """A transport with registered pools."""

    def __init__(
        self,
        role: Role = Role.PREFILL,
        shapes: Mapping[str, tuple[int, int, int]] | None = None,
        *,
        seed: int | None = 1,
        name: str | None = None,
        options: Mapping[str, object] | None = None,
        direction: Direction = Direction.WRITE,
    ) -> None:
        self.memory = Memory(shapes or {"kv": (4, 64, 4096)}, seed)
        self.arrays = self.memory.arrays
        self.layout = self.memory.layout
        self.name = name or uuid.uuid4().hex
        self.transport = NixlTransport(
            TransportContext(role, self.name, TransferConfig(options=options or {}), direction)
        )
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
        return self.transport.local_descriptor()

    def meet(self, other: End | RemoteEnd, generation: int = 1) -> NixlPrepared:
        """Make the other end known here; the plan between the two, prepared."""
        key = PeerKey(other.name, generation)
        self.transport.add_peer(key, other.descriptor)
        place = self.memory.args.topology
        plan = plan_transfer(self.layout, other.layout, local_topology=place, remote_topology=place)
        return self.transport.prepare(key, plan)

    def write(self, prepared: NixlPrepared, local: npt.ArrayLike, remote: npt.ArrayLike) -> NixlTransfer:
        """Submit these pages."""
        return self.transport.submit(prepared, batch_of(prepared, local, remote))

    def finish(self, *transfers: Transfer) -> list[TransferProgress]:
        """Drive until all of them have ended, those that have failed without a proof, too; their records, and they are
        released.
        """

        def step() -> list[TransferProgress] | None:
            records = list(self.transport.progress(transfers))
            if len(records) == len(transfers):
                return sorted(records, key=lambda record: transfers.index(record.transfer))
            self.transport.wait(0.05)
            return None

        records: list[TransferProgress] = wait_until(step)
        for record in records:
            self.transport.release(record.transfer)
        return records

    def ended(self, transfer: Transfer) -> TransferProgress:
        """Drive until the transfer has ended, quiescent or not."""

        def step() -> TransferProgress | None:
            record = next(iter(self.transport.progress([transfer])), None)
            if record is None:
                self.transport.wait(0.05)
            return record

        return wait_until(step)


def batch_of(
    prepared: NixlPrepared, local: npt.ArrayLike, remote: npt.ArrayLike,
    states: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]] | None = None, aux: tuple[int, int] | None = None,
) -> Batch:  # fmt: skip
    """A batch of KV pages, state items and an auxiliary row."""
    items = {name: (_u64(here), _u64(there)) for name, (here, there) in (states or {}).items()}
    return make_batch(prepared.plan, kv=(_u64(local), _u64(remote), None), states=items, aux=aux)


def _u64(items: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    return np.asarray(items, np.uint64)


def wait_until(condition: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """Call it until it returns something true; that."""
    deadline = time.monotonic() + limit_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not so after {limit_s} s"


_idle: dict[tuple[str, ...], list[subprocess.Popen[bytes]]] = {}
"""Processes whose end was closed, by their settings for UCX: to start one takes a second."""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(LIMIT_S)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


@atexit.register
def _end_idle() -> None:
    for process in itertools.chain(*_idle.values()):
        _end(process)
    _idle.clear()


class RemoteEnd:
    """An end in a process of its own, whose memory is poisoned and can be fetched."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int, int]] | None = None,
        *,
        name: str | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self.shapes = dict(shapes or {"kv": (4, 64, 4096)})
        self._key = tuple(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("UCX_"))
        self._waiting = _idle.setdefault(self._key, [])
        self.process = self._waiting.pop() if self._waiting else self._start()
        told = self.ask(
            json.dumps({"shapes": self.shapes, "role": "decode", "name": name, "options": dict(options or {})})
        )
        self.name = told["name"]
        self.descriptor = bytes.fromhex(told["descriptor"])
        pools = {
            pool: Pool.uniform(pool, addresses, self.shapes[pool][2], self.shapes[pool][1])
            for pool, addresses in told["addresses"].items()
        }
        states = tuple(pool for name, pool in pools.items() if name not in ("kv", "aux"))
        self.layout = MemoryLayout.of(KVArgs(pools["kv"], pools.get("aux"), states))

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        program = "from plugins.kv_nixl.tests.nixl_remote import main; main()"
        return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        line: bytes = self.process.stdout.readline()
        assert line, f"the other end has ended, code {self.process.wait(LIMIT_S)}"
        return line

    def ask(self, request: str) -> Any:
        """Let the process do something; its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(request.encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def ask_only(self, request: str) -> None:
        """Let the process do something that it gives no answer to."""
        assert self.process.stdin is not None
        self.process.stdin.write(request.encode() + b"\n")
        self.process.stdin.flush()

    def fetch(self, pool: str = "kv") -> npt.NDArray[np.uint8]:
        """The bytes of a pool as they are there."""
        assert self.process.stdout is not None
        assert self.ask(f"fetch {pool}") == {"bytes": int(np.prod(self.shapes[pool]))}
        data = self.process.stdout.read(int(np.prod(self.shapes[pool])))
        return np.frombuffer(data, np.uint8).reshape(self.shapes[pool])

    def kill(self) -> None:
        """Kill the process, and wait for its end."""
        self.process.kill()
        self.process.wait(LIMIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGCONT)  # a test may have stopped it
        if failed is None and self.process.poll() is None and self.ask("close") == {"closed": True}:
            self._waiting.append(self.process)
        else:
            _end(self.process)


def states(records: Sequence[TransferProgress]) -> list[str]:
    """Just the states."""
    return [record.state.value for record in records]
