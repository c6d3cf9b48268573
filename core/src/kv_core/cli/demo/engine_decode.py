"""The decode rank's engine: it names poisoned pages, and compares every byte when the room says Success."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kv_core.cli.demo.engine import Engine, Job
from kv_core.cli.demo.lines import Ended, FromRank
from kv_core.cli.demo.pages import U64, Content, Memory
from kv_core.contract.interfaces import BaseKVManager, BaseKVReceiver


class DecodeEngine(Engine[BaseKVReceiver]):
    """Free pages are always poisoned. That they still are is checked when they are taken: a byte that lands in pages
    after they were released, or in pages of no room, is a stray one.
    """

    def __init__(
        self,
        tell: Callable[[FromRank], None],
        manager: BaseKVManager,
        memory: Memory,
        content: Content,
        random: np.random.Generator,
        pages: int,
    ) -> None:
        super().__init__(tell, memory, content, random, pages)
        self._manager = manager
        self.stray_bytes = 0

    def open_handle(self, bootstrap_addr: str, room: int) -> BaseKVReceiver:
        """See ``Engine.open_handle``."""
        receiver = self._manager.create_receiver(bootstrap_addr, room)
        receiver.init(prefill_dp_rank=0)
        return receiver

    def advance(self, job: Job[BaseKVReceiver]) -> bool:
        """Name the pages."""
        pages = self.take_memory(job) if job.pages is None else None
        if pages is None:
            return False
        self.stray_bytes += self.memory.touched_bytes(pages, np.array([job.row], np.uint64))
        job.handle.send_metadata(pages, aux_index=job.row)
        return True

    def conclude(self, job: Job[BaseKVReceiver], now: float) -> Ended:
        """Compare everything. The latency is taken before that."""
        assert job.pages is not None, "a room can't succeed before its pages were named"
        return Ended(
            job.room,
            nbytes=self.memory.shape.request_bytes(job.pages.size),
            wrong_bytes=self.memory.wrong_bytes(self.content, job.room, job.pages, job.row),
            latency_s=now - job.opened_at,
        )

    def clean(self, pages: U64, row: int) -> None:
        """Poison the pages."""
        self.memory.poison(pages, row)
