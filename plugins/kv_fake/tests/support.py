"""Two ends of a software NIC, in one process or with the receiving end in another one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kv_core import Direction, KVArgs, Pool, Role, TransferConfig, TransferState
from kv_core.contract.transport import PeerKey, Prepared, Transfer, TransferProgress, TransportContext
from kv_core.layout import Batch, MemoryLayout, make_batch, plan_transfer
from kv_fake import FakeTransport
from kv_fake.outbound import FakeTransfer

if TYPE_CHECKING:
    from typing_extensions import Self

LIMIT_S = 30.0
POISON = 0xEE


class End:
    """One transport with a pool: ``pages`` has shape (buffers, items, item_len), dtype uint8."""

    def __init__(
        self, role: Role, *, buffers: int = 4, items: int = 64, item_len: int = 4096, fill: int | None = None,
        seed: int = 0, faults: Sequence[Any] = (), direction: Direction = Direction.WRITE,
    ) -> None:  # fmt: skip
        if fill is None:
            self.pages = np.random.default_rng(seed).integers(1, 255, (buffers, items, item_len), np.uint8)
        else:
            self.pages = np.full((buffers, items, item_len), fill, np.uint8)
        addresses = [int(buffer.__array_interface__["data"][0]) for buffer in self.pages]
        self.args = KVArgs(Pool.uniform("kv", addresses, item_len, items))
        self.layout = MemoryLayout.of(self.args)
        self.name = uuid.uuid4().hex
        config = TransferConfig(options={"faults": list(faults), "seed": seed})
        self.transport = FakeTransport(TransportContext(role, self.name, config, direction))
        try:
            self.transport.register_memory(self.layout.regions())
        except BaseException:
            self.transport.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()

    def meet(self, other: End | RemoteEnd, generation: int = 1) -> Prepared:
        """Make the other end known here; the plan between the two."""
        key = PeerKey(other.name, generation)
        self.transport.add_peer(key, other.descriptor)
        place = self.args.topology
        plan = plan_transfer(self.layout, other.layout, local_topology=place, remote_topology=place)
        return self.transport.prepare(key, plan)

    @property
    def descriptor(self) -> bytes:
        """See ``Transport``."""
        return self.transport.local_descriptor()

    def write(self, prepared: Prepared, local: npt.ArrayLike, remote: npt.ArrayLike) -> FakeTransfer:
        """Submit these pages; an end that reads, reads them."""
        return self.transport.submit(prepared, batch_of(prepared, local, remote))

    def finish(self, *transfers: Transfer) -> list[TransferProgress]:
        """Drive until all of them are quiescent; their last records."""
        return drive(self.transport, transfers, lambda records: len(records) == len(transfers))


def batch_of(prepared: Prepared, local: npt.ArrayLike, remote: npt.ArrayLike) -> Batch:
    """A batch of KV pages."""
    pair = (np.asarray(local, np.uint64), np.asarray(remote, np.uint64), None)
    return make_batch(prepared.plan, kv=pair)


def drive(transport: FakeTransport, transfers: Sequence[Transfer], enough: Any) -> list[TransferProgress]:
    """Call ``progress`` and ``wait`` until ``enough`` says so of the quiescent records; they are released then."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        records = [record for record in transport.progress(transfers) if record.quiescent]
        if enough(records):
            for record in records:
                transport.release(record.transfer)
            return sorted(records, key=lambda record: transfers.index(record.transfer))
        transport.wait(0.2)
    states = list(transport.progress(transfers))
    raise AssertionError(f"not quiescent after {LIMIT_S} s: {states}")


def states(records: Sequence[TransferProgress]) -> list[TransferState]:
    """Just the states."""
    return [record.state for record in records]


class RemoteEnd:
    """A receiving end in a process of its own, which can be killed and stopped. Its pages can be fetched."""

    def __init__(self, items: int = 64, item_len: int = 4096, buffers: int = 4) -> None:
        settings = {"items": items, "item_len": item_len, "buffers": buffers}
        command = [sys.executable, "-c", f"from plugins.kv_fake.tests.remote import main; main({settings!r})"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        told = json.loads(self._line())
        self.name = told["name"]
        self.descriptor = bytes.fromhex(told["descriptor"])
        self.shape = (buffers, items, item_len)
        pool = Pool.uniform("kv", told["addresses"], item_len, items)
        self.layout = MemoryLayout.of(KVArgs(pool))

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        line: bytes = self.process.stdout.readline()
        return line

    def ask(self, request: str) -> Any:
        """Let the process do something; its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(request.encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def fetch(self) -> npt.NDArray[np.uint8]:
        """The pages as they are there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"fetch\n")
        self.process.stdin.flush()
        data = self.process.stdout.read(int(np.prod(self.shape)))
        return np.frombuffer(data, np.uint8).reshape(self.shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(LIMIT_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def wait_until(condition: Any, limit_s: float = LIMIT_S) -> None:
    """Wait for a condition; fail loudly after the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not so after {limit_s} s"
        time.sleep(0.005)
