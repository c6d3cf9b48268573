"""The process behind ``RemoteEnd``."""

from __future__ import annotations

import json
import sys
from typing import Any

from kv_core import Role
from plugins.kv_mooncake.tests.support import POISON, End


def main(settings: dict[str, Any]) -> None:
    """Serve requests from standard input until it ends."""
    with End(Role.DECODE, **{"fill": POISON, **settings}) as end:
        arrays = {"kv": end.pages, "aux": end.aux, "mamba": end.state}
        addresses = {pool.name: [buffer.address for buffer in pool.buffers] for pool in end.args.pools()}
        _say({"name": end.name, "descriptor": end.descriptor.hex(), "addresses": addresses})
        for line in sys.stdin:
            request, _, argument = line.strip().partition(" ")
            if request == "fetch":
                sys.stdout.buffer.write(arrays[argument].tobytes())
                sys.stdout.buffer.flush()
            elif request == "deregister":
                end.transport.deregister_memory(end.layout.regions())
                _say("deregistered")
            elif request == "poison":
                for array in arrays.values():
                    array[:] = POISON
                _say("poisoned")
            elif request == "close":
                end.transport.close()
                _say("closed")


def _say(message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
