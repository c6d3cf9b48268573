"""The process behind ``RemoteEnd``."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from kv_core import Role
from plugins.kv_nixl.tests.nixl_ends import POISON, End


def main(settings: dict[str, Any]) -> None:
    """Serve requests from standard input until it ends."""
    role, shapes = Role(settings["role"]), settings["shapes"]
    with End(role, shapes, seed=None, name=settings["name"], options=settings["options"]) as end:
        pools = {pool.name: [buffer.address for buffer in pool.buffers] for pool in end.memory.args.pools()}
        _say({"name": end.name, "descriptor": end.descriptor.hex(), "addresses": pools})
        for line in sys.stdin:
            command, *arguments = line.split()
            if command == "fetch":
                array = end.arrays[arguments[0]]
                _say({"bytes": array.nbytes})
                sys.stdout.buffer.write(array.tobytes())
                sys.stdout.buffer.flush()
            elif command == "die-at-first-byte":
                while end.arrays["kv"][0, int(arguments[0]), 0] == POISON:
                    os.sched_yield()
                os.kill(os.getpid(), signal.SIGKILL)
            elif command == "deregister":
                end.transport.deregister_memory(end.layout.regions())
                _say({})


def _say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
