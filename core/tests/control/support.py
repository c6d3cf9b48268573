"""What the control channel's tests share: channels, peers in processes of their own, and waiting for a condition."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import monotonic

from kv_core.runtime.control import ConnectionLost, ConnectionRefused, ControlChannel, Frame, Incoming

LIMIT_S = 60.0
"""Generous: nothing here takes more than a second or two on an idle machine."""
MAX_BYTES = 1 << 20


def make_channel(
    host: str = "127.0.0.1", port: int = 0, advertised: str | None = None, *, max_connections: int = 4_096
) -> ControlChannel:
    return ControlChannel(
        host, port, advertised, MAX_BYTES, logging.getLogger("control"), max_connections=max_connections
    )


@contextmanager
def opened(host: str = "127.0.0.1", port: int = 0, *, max_connections: int = 4_096) -> Iterator[ControlChannel]:
    channel = make_channel(host, port, max_connections=max_connections)
    channel.open()
    try:
        yield channel
    finally:
        channel.close()


def poll_until(channel: ControlChannel, done: Callable[[list[Incoming]], bool]) -> list[Incoming]:
    """Everything that comes in until ``done`` likes it."""
    got: list[Incoming] = []
    end = monotonic() + LIMIT_S
    while not done(got):
        assert monotonic() < end, f"gave up after {LIMIT_S} s with {got[-10:]} and {channel.snapshot()}"
        got += channel.poll(0.05)
    return got


def lost(incoming: list[Incoming]) -> list[str]:
    return [one.endpoint for one in incoming if isinstance(one, ConnectionLost)]


def refused(incoming: list[Incoming]) -> list[str]:
    return [one.endpoint for one in incoming if isinstance(one, ConnectionRefused)]


def frames(incoming: list[Incoming]) -> list[bytes]:
    return [one.data for one in incoming if isinstance(one, Frame)]


class Peer(AbstractContextManager["Peer"]):
    """``peer.py`` in a process of its own."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        command = [sys.executable, str(Path(__file__).with_name("peer.py")), host, str(port)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.endpoint = self.process.stdout.readline().strip()
        assert self.endpoint.startswith("tcp://"), "the peer process did not start"

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    def stop(self) -> None:
        """SIGSTOP, and wait until every thread stands."""
        os.kill(self.process.pid, signal.SIGSTOP)
        pause, end = threading.Event(), monotonic() + LIMIT_S
        tasks = Path(f"/proc/{self.process.pid}/task")
        while {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks.iterdir()} != {"T"}:
            assert monotonic() < end
            pause.wait(0.01)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __exit__(self, *_: object) -> None:
        self.end()


def ask(channel: ControlChannel, peer: Peer, text: str) -> list[Incoming]:
    """Ask until the peer answers (a frame may be lost while it starts); everything that came in meanwhile."""
    answer = f"{peer.process.pid}:{text}".encode()
    got: list[Incoming] = []
    end = monotonic() + LIMIT_S
    while answer not in frames(got):
        assert monotonic() < end, f"no answer after {LIMIT_S} s: {got[-10:]}, {channel.snapshot()}"
        channel.send(peer.endpoint, f"{channel.endpoint}|{text}".encode())
        got += channel.poll(0.2)
    return got


@contextmanager
def dead_port(host: str = "127.0.0.1") -> Iterator[int]:
    """A port where nobody listens, and nobody else can begin to."""
    with socket.socket() as bound:
        bound.bind((host, 0))
        yield bound.getsockname()[1]


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that swallows connection attempts on every loopback address: its accept queue is full for good."""
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = []
        try:
            # One is queued at backlog 0; the next ones' handshakes are never completed.
            for _ in range(3):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
                fillers.append(filler)
            yield port
        finally:
            for filler in fillers:
                filler.close()
