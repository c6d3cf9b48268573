"""The program of a crowd: several prefill managers, each with a bootstrap server of its own, in one process.

It prints their addresses as one JSON list, serves the rooms that it reads from stdin (JSON lists of room numbers, one
for each manager; each room is announced with one page and never sent) and ends when stdin does.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from kv_core import BaseKVManager, BaseKVSender, BootstrapServer, Role, TransferConfig, load_backend
from tests.support.memory import RankMemory, Shape

BACKEND = "fake"
SHAPE = Shape(pages=8, layers=1, page_bytes=64, aux_rows=0)
"""Of each of its members."""


def main() -> None:
    """Until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("members", type=int)
    members = parser.parse_args().members
    with ExitStack() as stack:
        crowd: list[tuple[str, BaseKVManager]] = []
        for _ in range(members):
            addr = stack.enter_context(BootstrapServer(port=0)).address
            memory = RankMemory(SHAPE)
            config = TransferConfig(bootstrap_addr=addr)
            crowd.append(
                (addr, stack.enter_context(load_backend(BACKEND).create_manager(Role.PREFILL, memory.args(), config)))
            )
        print(json.dumps([addr for addr, _ in crowd]), flush=True)
        senders: list[BaseKVSender] = []
        for line in sys.stdin:
            for (addr, manager), room in zip(crowd, json.loads(line), strict=True):
                senders.append(manager.create_sender(addr, room))
                senders[-1].init(1)
            print("ready", flush=True)


if __name__ == "__main__":
    main()
