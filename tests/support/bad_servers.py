"""Things that listen where a bootstrap server, or a peer, is expected."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil


def listening_ports(pid: int | None = None) -> set[int]:
    """TCP ports on which a process (this one by default) listens."""
    found = psutil.Process(pid).net_connections("tcp")
    return {connection.laddr.port for connection in found if connection.status == psutil.CONN_LISTEN}


@contextmanager
def closed_port() -> Iterator[int]:
    """A port at which connections are refused: bound, so that nobody else takes it, and not listened on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that swallows connection attempts: its queue is full, so the kernel drops what else knocks."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            knock = stack.enter_context(socket.socket())
            knock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                knock.connect(listener.getsockname())
        yield int(listener.getsockname()[1])


@contextmanager
def talker(answer: Callable[[bytes], bytes | None]) -> Iterator[int]:
    """Takes connections; what ``answer`` makes of the first bytes is sent, then it hangs up (None: it never answers)."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stop = threading.Event()
        thread = threading.Thread(target=_talk, args=(listener, answer, stop), name="talker")
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        yield int(listener.getsockname()[1])


def _talk(listener: socket.socket, answer: Callable[[bytes], bytes | None], stop: threading.Event) -> None:
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        selector.register(listener, selectors.EVENT_READ)
        while not stop.is_set():
            for key, _ in selector.select(0.05):
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    stack.enter_context(connection)
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                connection = key.fileobj  # type: ignore[assignment]
                selector.unregister(connection)
                with contextlib.suppress(OSError):  # the other side is as free to hang up as we are
                    reply = answer(connection.recv(65_536))
                    if reply is not None:
                        connection.sendall(reply)
                        connection.close()


def http(status: int, body: bytes, content_type: str = "application/json") -> Callable[[bytes], bytes]:
    """An answer for ``talker``."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return lambda _request: head.encode() + body


@contextmanager
def slow_proxy(port: int, delay_s: float) -> Iterator[int]:
    """Forwards one request per connection to a real server, and its answer after a while."""

    def forward(request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as real:
            real.sendall(request.replace(b"keep-alive", b"close"))
            parts = []
            while part := real.recv(65_536):
                parts.append(part)
                if b"\r\n\r\n" in b"".join(parts):
                    break
        threading.Event().wait(delay_s)  # that is what a slow server does
        return b"".join(parts)

    with talker(forward) as front:
        yield front
