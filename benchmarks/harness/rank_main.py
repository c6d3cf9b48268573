"""One of the processes: ``python -m benchmarks.harness.rank_main prefill|decode BACKEND``.

Commands and answers are lines of JSON on standard input and output.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from typing import Any

from benchmarks.harness.figures import cpu_seconds
from benchmarks.harness.memory import Memory, Shape, page_sets
from benchmarks.harness.way_core import CoreWay
from benchmarks.harness.ways import make_way
from benchmarks.harness.work import Way, Work


class Rank:
    """Memories and ways by name."""

    def __init__(self, role: str, backend: str) -> None:
        self._source = role == "prefill"
        self._backend = backend
        self._memories: dict[str, Memory] = {}
        self._ways: dict[str, tuple[Way, Memory]] = {}

    def memory(self, name: str, buffers: int, pages: int, item_bytes: int, order: str = "") -> None:
        """Allocate and fill a pool."""
        self._memories[name] = Memory(Shape(buffers, pages, item_bytes, order), source=self._source)

    def open(self, name: str, kind: str, memory: str, options: dict[str, Any]) -> dict[str, Any]:
        """Set up this side of a way."""
        pool = self._memories[memory]
        way = make_way(kind, pool, self._backend, source=self._source)
        self._ways[name] = (way, pool)
        return way.open(options)

    def connect(self, name: str, told: dict[str, Any]) -> None:
        """Bring the two sides together."""
        self._ways[name][0].connect(told)

    def run(self, name: str, work: dict[str, Any]) -> dict[str, Any]:
        """Measure."""
        before = cpu_seconds()
        return self._ways[name][0].run(Work(**work)) | {"cpu_before": before}

    def held(self, name: str, what: str, **arguments: Any) -> Any:
        """One of ``HeldRooms``' methods, on a way that is kv-core."""
        way = self._ways[name][0]
        assert isinstance(way, CoreWay), "only kv-core has rooms"
        return getattr(way.held, what)(**arguments)

    def staged(self, name: str) -> int:
        """How many batches went by way of the staging area, on a way that is kv-core."""
        way = self._ways[name][0]
        assert isinstance(way, CoreWay), "only kv-core stages"
        return int(way.manager.snapshot()["transfers"]["totals"]["staged_batches"])

    def cpu(self) -> float:
        """Processor time so far."""
        return cpu_seconds()

    def verify(self, name: str, pages: int, pattern: str, pools: tuple[int, int]) -> int:
        """After a run of one room: how many of its pages are wrong on the decode side. Makes them poison again."""
        if self._source:
            return 0
        memory = self._ways[name][1]
        theirs, mine = (page_sets(pools[i], pages, 1, pattern, i + 1)[0] for i in (0, 1))
        wrong = memory.unlike(mine, theirs) if memory.shape.order else memory.wrong_pages(mine, theirs)
        memory.wipe(mine)
        return wrong

    def close(self, name: str) -> None:
        """Close this side of a way."""
        self._ways.pop(name)[0].close()

    def quit(self) -> None:
        """Close everything."""
        for name in list(self._ways):
            self.close(name)


def main() -> None:
    """Serve until told to quit, or until the pipe closes."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # native libraries may write what they like
    rank = Rank(sys.argv[1], sys.argv[2])
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        try:
            answer = {"ok": getattr(rank, name)(**command)}
        except Exception:  # noqa: BLE001 - the parent prints it and ends the run
            answer = {"error": traceback.format_exc()}
        out.write(json.dumps(answer) + "\n")
        out.flush()
        if name == "quit":
            return
    rank.quit()


if __name__ == "__main__":
    try:
        main()
    except BaseException:  # noqa: BLE001 - threads of an open way must not keep a broken process alive
        traceback.print_exc()
        os._exit(1)
