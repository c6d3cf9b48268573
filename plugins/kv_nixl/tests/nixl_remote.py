"""The process behind ``RemoteEnd``."""

from __future__ import annotations

import json
import sys
from typing import Any

from kv_core import Role
from plugins.kv_nixl.tests.nixl_ends import End


def main(settings: dict[str, Any]) -> None:
    """Serve requests from standard input until it ends."""
    with End(Role(settings["role"]), settings["shapes"], seed=None, name=settings["name"]) as end:
        pools = {pool.name: [buffer.address for buffer in pool.buffers] for pool in end.memory.args.pools()}
        _say({"name": end.name, "descriptor": end.descriptor.hex(), "addresses": pools})
        for line in sys.stdin:
            command, *arguments = line.split()
            if command == "fetch":
                array = end.arrays[arguments[0]]
                _say({"bytes": array.nbytes})
                sys.stdout.buffer.write(array.tobytes())
                sys.stdout.buffer.flush()
            elif command == "deregister":
                end.transport.deregister_memory(end.layout.regions())
                _say({})


def _say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
