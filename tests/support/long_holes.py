"""Black holes: addresses that swallow what is sent to them, in the ways in which real ones do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from contextlib import ExitStack

import requests

from kv_core import BootstrapServer
from kv_core.protocol.messages import PROTOCOL_VERSION
from kv_core.runtime.bootstrap import RankRegistration
from tests.support.rank import ROOT

FOR_EVER_S = 3_600.0


def full_backlog(stack: ExitStack) -> int:
    """A port where connection attempts hang: its accept queue is full, and nobody accepts."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port: int = listener.getsockname()[1]
    for _ in range(3):  # one is queued at backlog 0; the handshakes of the next ones are never completed
        filler = stack.enter_context(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port))
    return port


def silent(stack: ExitStack) -> int:
    """A port where connections are accepted (by the kernel) and nothing is ever read or answered."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(1_024)
    port: int = listener.getsockname()[1]
    return port


def server_of(stack: ExitStack, rank_port: int, shape: dict[str, str | int]) -> str:
    """Address of a real bootstrap server that names one rank, at this port."""
    server = stack.enter_context(BootstrapServer(port=0, registration_ttl_s=FOR_EVER_S))
    registration = RankRegistration(
        instance_id=uuid.uuid4().hex, ranks=(0, 0, 0, 0), sizes=(1, 1, 1, 1), rank_ip="127.0.0.1", rank_port=rank_port,
        page_size=int(shape["page_size"]), kv_cache_dtype=str(shape["dtype"]), kv_layout=str(shape["kv_layout"]),
        backend=str(shape["backend"]), protocol_version=PROTOCOL_VERSION,
    )  # fmt: skip
    answer = requests.put(
        f"http://{server.address}/route",
        registration.encode(),
        headers={"Content-Type": "application/json"},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    return server.address


class Crowd:
    """Prefill managers in one process (``long_crowd``), which a signal turns into black holes with warm sessions."""

    def __init__(self, members: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.long_crowd", str(members)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.addrs: list[str] = json.loads(self._process.stdout.readline())

    def open(self, rooms: list[int]) -> None:
        """Open a room on each member."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(rooms) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "ready\n"

    def freeze(self) -> None:
        """From now on nobody there answers."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def close(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
