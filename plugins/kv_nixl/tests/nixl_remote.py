"""The process behind ``RemoteEnd``."""

from __future__ import annotations

import json
import os
import signal
import sys
import zlib
from typing import Any

from kv_core import Role
from plugins.kv_nixl.tests.nixl_ends import POISON, End


def main() -> None:
    """Serve one end after the other: its settings on a line of standard input, then requests, then "close"."""
    for line in sys.stdin:
        serve(json.loads(line))
        _say({"closed": True})


def serve(settings: dict[str, Any]) -> None:
    """One end."""
    role, shapes = Role(settings["role"]), settings["shapes"]
    with End(role, shapes, seed=None, name=settings["name"], options=settings["options"]) as end:
        pools = {pool.name: [buffer.address for buffer in pool.buffers] for pool in end.memory.args.pools()}
        _say({"name": end.name, "descriptor": end.descriptor.hex(), "addresses": pools})
        for line in sys.stdin:
            command, *arguments = line.split()
            if command == "close":
                return
            if command == "fetch":
                array = end.arrays[arguments[0]]
                _say({"bytes": array.nbytes})
                sys.stdout.buffer.write(array.tobytes())
                sys.stdout.buffer.flush()
            elif command == "checksum":
                _say(zlib.crc32(end.arrays[arguments[0]].data))
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
