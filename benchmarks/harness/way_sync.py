"""The transport driven as SGLang's first NIXL backend was: the engine's own thread posts a room and waits for its end.

There is no protocol around it, which flatters it: a room costs nothing but its bytes.
"""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import Any

from benchmarks.harness.way_transport import TransportWay
from benchmarks.harness.window import Window
from benchmarks.harness.work import Work


class SyncWay(TransportWay):
    """Both sides. The thread that calls ``run`` is the engine's: it is held from the first post to the last end."""

    def run(self, work: Work) -> dict[str, Any]:
        """The rooms one after the other, whatever the concurrency: the others wait for the thread."""
        if not self._source:
            return {}
        slots = self._made(work)
        work = replace(work, concurrency=1)
        start = monotonic()
        self.move(Window(work.rooms, work.concurrency, slots, self._config.window_bytes))
        end = monotonic()
        return {"start": start, "end": end, "held_s": end - start}
