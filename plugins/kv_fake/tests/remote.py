"""The process behind ``RemoteEnd``."""

from __future__ import annotations

import json
import sys
from typing import Any

from kv_core import Role
from kv_core.contract.transport import PeerKey
from plugins.kv_fake.tests.support import POISON, End


def main(settings: dict[str, Any]) -> None:
    """Serve requests from standard input until it ends."""
    with End(Role.DECODE, fill=POISON, **settings) as end:
        addresses = [buffer.address for buffer in end.args.kv.buffers]
        _say({"name": end.name, "descriptor": end.descriptor.hex(), "addresses": addresses})
        for line in sys.stdin:
            command, *arguments = line.split()
            if command == "fetch":
                sys.stdout.buffer.write(end.pages.tobytes())
                sys.stdout.buffer.flush()
            elif command == "fence":
                end.transport.fence(PeerKey(arguments[0], int(arguments[1])))
                _say({"fenced": True})


def _say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
