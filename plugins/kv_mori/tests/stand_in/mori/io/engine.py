# ruff: noqa: A002  (the names are MORI's)
"""The Python layer: the same methods with the same parameters as in the wheel, as far as kv-mori uses them."""

from __future__ import annotations

from mori import cpp as mori_cpp


class IOEngineSession:
    def __init__(self, mori_sess):
        self._sess = mori_sess

    def alive(self):
        return self._sess.Alive()


class IOEngine:
    def __init__(self, key, config: mori_cpp.IOEngineConfig):
        self._engine = mori_cpp.IOEngine(key, config)

    def get_engine_desc(self):
        return self._engine.GetEngineDesc()

    def create_backend(self, type: mori_cpp.BackendType, config=None):
        return self._engine.CreateBackend(type, config)

    def register_remote_engine(self, engine_desc: mori_cpp.EngineDesc):
        return self._engine.RegisterRemoteEngine(engine_desc)

    def deregister_remote_engine(self, engine_desc: mori_cpp.EngineDesc):
        return self._engine.DeregisterRemoteEngine(engine_desc)

    def register_memory(self, ptr: int, size: int, device_id: int, mem_loc: mori_cpp.MemoryLocationType):
        return self._engine.RegisterMemory(ptr, size, device_id, mem_loc)

    def deregister_memory(self, mem_desc: mori_cpp.MemoryDesc):
        return self._engine.DeregisterMemory(mem_desc)

    def _batch_single_side_transfer(
        self,
        func,
        local_dest_mem_desc,
        local_offsets,
        remote_src_mem_desc,
        remote_offsets,
        sizes,
        transfer_uid,
    ):
        transfer_status = [mori_cpp.TransferStatus() for _ in range(len(sizes))]
        func(
            local_dest_mem_desc,
            local_offsets,
            remote_src_mem_desc,
            remote_offsets,
            sizes,
            transfer_status,
            transfer_uid,
        )
        return transfer_status

    def batch_write(self, *args):
        return self._batch_single_side_transfer(self._engine.BatchWrite, *args)

    def create_session(self, local_mem, remote_mem):
        mori_sess = self._engine.CreateSession(local_mem, remote_mem)
        if mori_sess is None:
            return None
        return IOEngineSession(mori_sess)

    def wait_all(self, statuses, timeout_ms: int = -1) -> mori_cpp.StatusCode:
        return self._engine.WaitAll(statuses, timeout_ms)
