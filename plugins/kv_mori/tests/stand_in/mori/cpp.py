# ruff: noqa: N802, A002  (the names are MORI's)
"""The compiled module's names: enumerations, descriptors, statuses, the engine."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
import weakref
from enum import IntEnum
from typing import Any

import msgspec

from mori.nic import Job, Nic


class BackendType(IntEnum):
    Unknown = 0
    XGMI = 1
    RDMA = 2
    TCP = 3
    FABRIC = 4


class MemoryLocationType(IntEnum):
    Unknown = 0
    CPU = 1
    GPU = 2


class StatusCode(IntEnum):
    SUCCESS = 0
    INIT = 1
    IN_PROGRESS = 2
    ERR_INVALID_ARGS = 11
    ERR_NOT_FOUND = 12
    ERR_RDMA_OP = 13
    ERR_BAD_STATE = 14
    ERR_GPU_OP = 15


class PollCqMode(IntEnum):
    POLLING = 0
    EVENT = 1


class RdmaBackendConfig:
    def __init__(
        self,
        qp_per_transfer: int = 1,
        post_batch_size: int = -1,
        num_worker_threads: int = -1,
        poll_cq_mode: PollCqMode = PollCqMode.POLLING,
        enable_notification: bool = True,
        notif_per_qp: int = 1024,
        enable_transfer_chunking: bool = False,
        chunk_bytes: int = 65536,
        max_chunks_per_transfer: int = 64,
        num_nics_per_transfer: int = 1,
    ) -> None:
        self.qp_per_transfer = qp_per_transfer
        self.enable_notification = enable_notification


class XgmiBackendConfig:
    def __init__(self, num_streams: int = 64, num_events: int = 64) -> None:
        self.num_streams = num_streams


class IOEngineConfig:
    def __init__(self, host: str = "", port: int = 0) -> None:
        self.host = host
        self.port = port


class EngineDesc:
    def __init__(self, key: str, node_id: str, hostname: str, host: str, port: int, pid: int) -> None:
        self.key, self.node_id, self.hostname, self.host, self.port, self.pid = key, node_id, hostname, host, port, pid

    def pack(self) -> bytes:
        return msgspec.msgpack.encode([self.key, self.node_id, self.hostname, self.host, self.port, self.pid])

    @staticmethod
    def unpack(packed: bytes) -> EngineDesc:
        return EngineDesc(*msgspec.msgpack.decode(packed))


class MemoryDesc:
    def __init__(self, *fields: Any) -> None:
        self.fields = fields
        self.engine_key, self.id, self.device_id, self.device_bus_id, self.data, self.size = fields[:6]
        self.loc = MemoryLocationType(fields[6])

    def pack(self) -> bytes:
        return msgspec.msgpack.encode(self.fields)

    @staticmethod
    def unpack(packed: bytes) -> MemoryDesc:
        return MemoryDesc(*msgspec.msgpack.decode(packed))


class TransferStatus:
    def __init__(self) -> None:
        self._code = StatusCode.INIT
        self._message = ""
        self._changed = threading.Condition()

    def Code(self) -> StatusCode:
        return self._code

    def Message(self) -> str:
        return self._message

    def Update(self, code: StatusCode, message: str) -> None:
        with self._changed:
            if self._code <= StatusCode.IN_PROGRESS:
                self._code, self._message = StatusCode(code), message
                self._changed.notify_all()

    def InProgress(self) -> bool:
        return self._code == StatusCode.IN_PROGRESS

    def Succeeded(self) -> bool:
        return self._code == StatusCode.SUCCESS

    def Failed(self) -> bool:
        return self._code > StatusCode.IN_PROGRESS

    def WaitFor(self, timeout_ms: int = -1) -> StatusCode:
        with self._changed:
            self._changed.wait_for(lambda: not self.InProgress(), None if timeout_ms < 0 else timeout_ms / 1000)
            return self._code


class IOEngineSession:
    def __init__(self, nic: Nic, key: str) -> None:
        self._nic, self._key = nic, key

    def Alive(self) -> bool:
        return not self._nic.is_broken(self._key)


class IOEngine:
    """What a test does to it, it does to ``nic``: see ``Nic``."""

    def __init__(self, key: str, config: IOEngineConfig) -> None:
        self.nic = Nic(key, config.host)
        self._end = weakref.finalize(self, self.nic.shutdown)
        self._key = key
        self._host = config.host
        self._ids = itertools.count(1)
        self.backends: set[BackendType] = set()

    def GetEngineDesc(self) -> EngineDesc:
        return EngineDesc(self._key, "node", socket.gethostname(), self._host, self.nic.port, os.getpid())

    def CreateBackend(self, type: BackendType, config: object) -> None:
        if type is BackendType.RDMA and os.environ.get("MORI_STAND_IN_DEVICES") == "0":
            raise RuntimeError(
                "no active RDMA device on this host; set MORI_DISABLE_AUTO_XGMI=0 to enable XGMI-only fallback"
            )
        self.backends.add(type)

    def RegisterRemoteEngine(self, desc: EngineDesc) -> None:
        self.nic.engines[desc.key] = (desc.host, desc.port)

    def DeregisterRemoteEngine(self, desc: EngineDesc) -> None:
        self.nic.engines.pop(desc.key, None)

    def RegisterMemory(self, data: int, size: int, device_id: int, loc: MemoryLocationType) -> MemoryDesc:
        if os.environ.get("MORI_STAND_IN_REFUSES") == str(size):
            raise RuntimeError("refused, for the test's sake")
        number = next(self._ids)
        self.nic.memory[number] = (data, size)
        tail = (bytes(64), -1, 0, bytes(64), -1, "", 0, 0)
        return MemoryDesc(self._key, number, device_id, "", data, size, int(loc), *tail)

    def DeregisterMemory(self, desc: MemoryDesc) -> None:
        self.nic.memory.pop(desc.id, None)

    def CreateSession(self, local: MemoryDesc, remote: MemoryDesc) -> IOEngineSession | None:
        if remote.engine_key not in self.nic.engines:
            return None
        size = self.nic.ask(remote.engine_key, remote.id)
        if size != remote.size:
            raise RuntimeError(
                f"RdmaBackend::CreateSession: remote MR size mismatch for engine {remote.engine_key} "
                f"memId={remote.id} expected={remote.size} got={size}"
            )
        return IOEngineSession(self.nic, remote.engine_key)

    def BatchWrite(self, local, local_offsets, remote, remote_offsets, sizes, statuses, uids) -> None:
        lengths = {len(column) for column in (local, local_offsets, remote, remote_offsets, sizes, statuses, uids)}
        assert len(lengths) == 1
        for mine, froms, theirs, tos, lens, status in zip(
            local, local_offsets, remote, remote_offsets, sizes, statuses, strict=True
        ):
            if self.nic.next_post_raises:
                self.nic.next_post_raises = False
                raise RuntimeError("BuildRdmaConn: cut off, for the test's sake")
            if theirs.engine_key not in self.nic.lines:
                status.Update(StatusCode.ERR_BAD_STATE, "No available backend found, create backend first")
                return  # as MORI does: what follows stays INIT
            status.Update(StatusCode.IN_PROGRESS, "")
            if any(at + length > mine.size for at, length in zip(froms, lens, strict=True)):
                status.Update(StatusCode.ERR_INVALID_ARGS, "length out of range")
                continue
            sources = [(mine.data + at, length) for at, length in zip(froms, lens, strict=True)]
            self.nic.post(theirs.engine_key, Job(theirs.id, sources, tos, status))

    def WaitAll(self, statuses: list[TransferStatus], timeout_ms: int = -1) -> StatusCode:
        deadline = time.monotonic() + timeout_ms / 1000
        first = StatusCode.SUCCESS
        for status in statuses:
            left = -1 if timeout_ms < 0 else max(0, int((deadline - time.monotonic()) * 1000 + 0.999))
            code = status.WaitFor(left)
            if code is StatusCode.IN_PROGRESS:
                return first if first is not StatusCode.SUCCESS else code
            if first is StatusCode.SUCCESS:
                first = code
        return first


def set_log_level(level: str) -> None:
    """Nothing is logged."""
