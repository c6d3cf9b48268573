"""What the bootstrap tests share: registrations, raw requests, servers in processes of their own, black holes."""

from __future__ import annotations

import json
import resource
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

from kv_core.runtime.bootstrap import RankRegistration, parse_address

LIMIT_S = 60.0
"""Generous: nothing here takes more than a second or two on an idle machine."""
ROOT = Path(__file__).parents[3]
SIZE_ONE = (1, 1, 1, 1)
RANK_ZERO = (0, 0, 0, 0)


def registration(**changes: Any) -> RankRegistration:
    """A valid registration of the only rank of an instance, with changes."""
    values: dict[str, Any] = {
        "instance_id": "instance-a",
        "ranks": RANK_ZERO,
        "sizes": SIZE_ONE,
        "rank_ip": "127.0.0.1",
        "rank_port": 5555,
        "page_size": 16,
        "kv_cache_dtype": "bfloat16",
        "kv_layout": "NHD",
        "backend": "some",
        "protocol_version": 1,
        "progress_age_s": 0.0,
    }
    return RankRegistration(**{**values, **changes})


def wire(**changes: Any) -> dict[str, Any]:
    """The JSON of a valid registration, with changes; a value of ``...`` leaves the key out."""
    message = {**json.loads(registration().encode()), **changes}
    return {key: value for key, value in message.items() if value is not ...}


def ask(address: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """One request on a connection of its own; a body that isn't bytes is sent as JSON. Returns status and JSON."""
    host, port = parse_address(address)
    connection = HTTPConnection(host, port, timeout=LIMIT_S)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {"Content-Type": "application/json", **named})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition."""
    end = monotonic() + LIMIT_S
    pause = threading.Event()
    while not condition():
        assert monotonic() < end, f"gave up after {LIMIT_S} s: {what}"
        pause.wait(0.01)


class Collector:
    """A callback that keeps what it was called with, and lets a test wait for it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.threads: set[int] = set()
        self._changed = threading.Condition()

    def __call__(self, address: str, outcome: Any) -> None:
        with self._changed:
            self.calls.append((address, outcome))
            self.threads.add(threading.get_ident())
            self._changed.notify_all()

    def outcomes(self, address: str | None = None) -> list[Any]:
        with self._changed:
            return [outcome for at, outcome in self.calls if address in (None, at)]

    def wait_for(self, condition: Callable[[list[Any]], object], what: str, address: str | None = None) -> list[Any]:
        end = monotonic() + LIMIT_S
        while True:
            seen = self.outcomes(address)
            if condition(seen):
                return seen
            with self._changed:
                assert self._changed.wait(end - monotonic()), f"gave up after {LIMIT_S} s: {what}; seen {seen[-5:]}"

    def wait_count(self, count: int, address: str | None = None) -> list[Any]:
        return self.wait_for(lambda seen: len(seen) >= count, f"{count} outcomes", address)


_SERVE = """
import sys
from kv_core.runtime.bootstrap.server import BootstrapServer
with BootstrapServer("127.0.0.1", int(sys.argv[1]), registration_ttl_s=float(sys.argv[2])) as server:
    print(server.address, flush=True)
    sys.stdin.read()
"""


class ServerProcess(AbstractContextManager["ServerProcess"]):
    """A bootstrap server in a process of its own; it ends when its standard input does, so it never outlives the test."""

    def __init__(self, port: int = 0, ttl_s: float = 10.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(port), str(ttl_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, "the server process could not start"
        self.port = parse_address(self.address)[1]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT_S)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def deaf_ports(count: int) -> Iterator[list[str]]:
    """Addresses whose queue of connections is full: a connection attempt hangs, as with a host that went away."""
    with ExitStack() as stack:
        addresses = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for _ in range(2):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            addresses.append(f"127.0.0.1:{listener.getsockname()[1]}")
        yield addresses


@contextmanager
def silent_ports(count: int) -> Iterator[list[str]]:
    """Addresses at which connections come about but nobody ever takes them: as many as the descriptors allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * count + 500  # a descriptor here and one at the client, and some for the rest of the process
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))
    count = min(count, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500) // 2)
    try:
        with ExitStack() as stack:
            listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=8)) for _ in range(count)]
            yield [f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def mute_servers(count: int, greeting: bytes = b"") -> Iterator[list[str]]:
    """Addresses that accept every connection, say ``greeting`` once something came, and then nothing more."""
    ended = threading.Event()
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        addresses = []
        for _ in range(count):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=256))
            listener.setblocking(False)
            selector.register(listener, selectors.EVENT_READ)
            addresses.append(f"127.0.0.1:{listener.getsockname()[1]}")

        def serve() -> None:
            listeners = {key.fd for key in selector.get_map().values()}
            kept: set[socket.socket] = set()
            while not ended.is_set():
                for key, _ in selector.select(0.05):
                    found = key.fileobj
                    assert isinstance(found, socket.socket)
                    if key.fd in listeners:
                        connection, _ = found.accept()
                        connection.setblocking(False)
                        kept.add(connection)
                        selector.register(connection, selectors.EVENT_READ)
                    elif not _greet(found, greeting):
                        selector.unregister(found)
                        kept.discard(found)
                        found.close()
            for connection in kept:
                connection.close()

        thread = threading.Thread(target=serve, name="mute-servers")
        thread.start()
        try:
            yield addresses
        finally:
            ended.set()
            thread.join(LIMIT_S)


def _greet(connection: socket.socket, greeting: bytes) -> bool:
    """Read what came and answer it; False once the other side has gone."""
    try:
        came = connection.recv(65_536)
        if came and greeting:
            connection.send(greeting)
    except OSError:
        return False
    return bool(came)


@contextmanager
def answering_server(answer: bytes) -> Iterator[str]:
    """An address that answers anything with these bytes and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(LIMIT_S)
                    connection.recv(65_536)
                    try:
                        connection.sendall(answer)
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(65_536):
                            continue
                    except OSError:
                        continue  # the client has seen enough

        thread = threading.Thread(target=serve, name="answering-server")
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            thread.join(LIMIT_S)


def http_answer(status: int, body: bytes, *headers: str) -> bytes:
    """The bytes of an HTTP answer."""
    lines = [f"HTTP/1.1 {status} Some", f"Content-Length: {len(body)}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def free_port() -> int:
    """A port on which nothing listens (now)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def own_threads() -> list[str]:
    """Names of the threads that the bootstrap package has running."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("kv-http", "kv-bootstrap"))]
