"""The prefill rank's engine: it computes prompts (fills pages) chunk by chunk, and sends each chunk when it is there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kv_core.cli.demo.engine import Engine, Job
from kv_core.cli.demo.lines import Ended, FromRank
from kv_core.cli.demo.pages import U64, Content, Memory
from kv_core.contract.interfaces import BaseKVManager, BaseKVSender


class PrefillEngine(Engine[BaseKVSender]):
    """Sends each request in ``chunks`` pieces (fewer if it has fewer pages)."""

    def __init__(
        self,
        tell: Callable[[FromRank], None],
        manager: BaseKVManager,
        memory: Memory,
        content: Content,
        random: np.random.Generator,
        pages: int,
        chunks: int,
    ) -> None:
        super().__init__(tell, memory, content, random, pages)
        self._manager = manager
        self._bounds = np.linspace(0, pages, min(chunks, pages) + 1).astype(int).tolist()

    def open_handle(self, bootstrap_addr: str, room: int) -> BaseKVSender:
        """See ``Engine.open_handle``."""
        return self._manager.create_sender(bootstrap_addr, room)

    def advance(self, job: Job[BaseKVSender]) -> bool:
        """Fill and send the next chunk."""
        if job.pages is None:
            if self.take_memory(job) is None:
                return False
            self.memory.fill_row(self.content, job.room, job.row)
            job.handle.init(self.pages_per_request, job.row)
        if job.sent == len(self._bounds) - 1:
            return False
        assert job.pages is not None, "taken above"
        first, last = self._bounds[job.sent : job.sent + 2]
        chunk = job.pages[first:last]
        self.memory.fill(self.content, job.room, chunk, first)
        job.handle.send(chunk)
        job.sent += 1
        return True

    def conclude(self, job: Job[BaseKVSender], now: float) -> Ended:
        """Report what the metric says."""
        metric = job.handle.get_transfer_metric()
        return Ended(
            job.room,
            nbytes=metric.transfer_total_bytes or 0,
            latency_s=now - job.opened_at,
            wire_s=metric.transfer_latency_s,
        )

    def clean(self, pages: U64, row: int) -> None:
        """A late read must find nothing that could be taken for the prompt."""
        self.memory.poison(pages, row)
