"""Two ends of MORI engines (the stand-in's), in one process or with the receiving end in another one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kv_core import KVArgs, Pool, Role, TransferConfig, TransferState
from kv_core.contract.transport import PeerKey, Transfer, TransferProgress, TransportContext
from kv_core.layout import Batch, MemoryLayout, make_batch, plan_transfer
from kv_mori import MoriTransport
from kv_mori.peers import MoriPrepared
from kv_mori.transfer import MoriTransfer

if TYPE_CHECKING:
    from typing_extensions import Self

LIMIT_S = 30.0
POISON = 0xEE


class End:
    """One transport with a pool: ``pages`` has shape (buffers, items, item_len), dtype uint8."""

    def __init__(
        self, role: Role, *, buffers: int = 4, items: int = 64, item_len: int = 4096, fill: int | None = None,
        seed: int = 0, **options: object,
    ) -> None:  # fmt: skip
        if fill is None:
            self.pages = np.random.default_rng(seed).integers(1, 255, (buffers, items, item_len), np.uint8)
        else:
            self.pages = np.full((buffers, items, item_len), fill, np.uint8)
        addresses = [int(buffer.__array_interface__["data"][0]) for buffer in self.pages]
        self.args = KVArgs(Pool.uniform("kv", addresses, item_len, items))
        self.layout = MemoryLayout.of(self.args)
        self.name = uuid.uuid4().hex
        self.transport = MoriTransport(TransportContext(role, self.name, TransferConfig(options=options)))
        self.transport.register_memory(self.layout.regions())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()

    @property
    def nic(self) -> Any:
        """The stand-in behind the transport."""
        return self.transport._engine._engine.nic

    @property
    def descriptor(self) -> bytes:
        """See ``Transport``."""
        return self.transport.local_descriptor()

    def meet(self, other: End | RemoteEnd, generation: int = 1) -> MoriPrepared:
        """Make the other end known here; the plan between the two."""
        key = PeerKey(other.name, generation)
        self.transport.add_peer(key, other.descriptor)
        return self.prepare(other, generation)

    def prepare(self, other: End | RemoteEnd, generation: int = 1) -> MoriPrepared:
        """Just the plan."""
        place = self.args.topology
        plan = plan_transfer(self.layout, other.layout, local_topology=place, remote_topology=place)
        return self.transport.prepare(PeerKey(other.name, generation), plan)

    def write(self, prepared: MoriPrepared, local: npt.ArrayLike, remote: npt.ArrayLike) -> MoriTransfer:
        """Submit these pages."""
        return self.transport.submit(prepared, batch_of(prepared, local, remote))

    def finish(self, *transfers: Transfer) -> list[TransferProgress]:
        """Drive until each has a final record; those that are quiescent are released. The records in order."""
        return self.drive(transfers, lambda record: record.state is not TransferState.PENDING)

    def settle(self, *transfers: Transfer) -> list[TransferProgress]:
        """Drive until all of them are quiescent."""
        return self.drive(transfers, lambda record: record.quiescent)

    def drive(
        self, transfers: Sequence[Transfer], enough: Callable[[TransferProgress], bool]
    ) -> list[TransferProgress]:
        deadline = time.monotonic() + LIMIT_S
        records: list[TransferProgress] = []
        while time.monotonic() < deadline:
            records = list(self.transport.progress(transfers))
            if len(records) == len(transfers) and all(map(enough, records)):
                for record in records:
                    if record.quiescent:
                        self.transport.release(record.transfer)
                return sorted(records, key=lambda record: transfers.index(record.transfer))
            self.transport.wait(0.2)
        raise AssertionError(f"not so after {LIMIT_S} s: {records}")


def batch_of(prepared: MoriPrepared, local: npt.ArrayLike, remote: npt.ArrayLike) -> Batch:
    """A batch of KV pages."""
    return make_batch(prepared.plan, kv=(np.asarray(local, np.uint64), np.asarray(remote, np.uint64), None))


def states(records: Sequence[TransferProgress]) -> list[TransferState]:
    """Just the states."""
    return [record.state for record in records]


class RemoteEnd:
    """A receiving end in a process of its own, which can be killed. Its pages can be fetched."""

    def __init__(self, items: int = 64, item_len: int = 4096, buffers: int = 4) -> None:
        settings = {"items": items, "item_len": item_len, "buffers": buffers}
        command = [sys.executable, "-c", f"from plugins.kv_mori.tests.support_mori import serve; serve({settings!r})"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.name = told["name"]
        self.descriptor = bytes.fromhex(told["descriptor"])
        self.shape = (buffers, items, item_len)
        self.layout = MemoryLayout.of(KVArgs(Pool.uniform("kv", told["addresses"], item_len, items)))

    def fetch(self) -> npt.NDArray[np.uint8]:
        """The pages as they are there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"fetch\n")
        self.process.stdin.flush()
        data = self.process.stdout.read(int(np.prod(self.shape)))
        return np.frombuffer(data, np.uint8).reshape(self.shape)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait(LIMIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def serve(settings: dict[str, Any]) -> None:
    """The process behind ``RemoteEnd``: answers requests from standard input until it ends."""
    with End(Role.DECODE, fill=POISON, **settings) as end:
        addresses = [buffer.address for buffer in end.args.kv.buffers]
        told = {"name": end.name, "descriptor": end.descriptor.hex(), "addresses": addresses}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        for _ in sys.stdin:
            sys.stdout.buffer.write(end.pages.tobytes())
            sys.stdout.buffer.flush()
