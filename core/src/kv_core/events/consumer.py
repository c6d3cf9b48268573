"""The other end: subscribe to a publisher's stream, and ask it for what is missing. For tools and tests; one thread each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple, final

import zmq

from kv_core.events.errors import ReplayError
from kv_core.events.numbers import END_SEQ, to_frame

Socket = zmq.Socket[bytes]


class Message(NamedTuple):
    """What came off a socket: the frames as they were, where from, and when (Unix seconds)."""

    frames: list[bytes]
    replayed: bool = False
    at: float = 0.0


@final
class Subscription:
    """A SUB socket; a context manager. `hwm` 0: no limit on this side."""

    def __init__(
        self,
        endpoint: str,
        *,
        topic: str = "",
        hwm: int = 0,
        bind: bool = False,
        context: zmq.Context[Socket] | None = None,
    ) -> None:
        self.socket = (context or zmq.Context.instance()).socket(zmq.SUB)
        self.socket.setsockopt(zmq.RCVHWM, hwm)
        self.socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        try:
            if bind:
                self.socket.bind(endpoint)
            else:
                self.socket.connect(endpoint)
        except zmq.ZMQError:
            self.socket.close(linger=0)
            raise

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or None if none came in time."""
        if not self.socket.poll(int(max(timeout_s, 0) * 1000)):
            return None
        return Message(self.socket.recv_multipart(), at=time.time_ns() / 1e9)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close(linger=0)


def replay(
    endpoint: str, start: int, *, timeout_s: float = 10.0, context: zmq.Context[Socket] | None = None
) -> Iterator[Message]:
    """Ask for everything from `start` on; yields ``[topic, seq, payload]`` until the publisher says that this was all.

    timeout_s: how long to wait for each message. Raises ``ReplayError`` where none comes, or one that is no answer.
    """
    socket = (context or zmq.Context.instance()).socket(zmq.DEALER)
    try:
        socket.setsockopt(zmq.RCVHWM, 0)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise ReplayError(
                f"{endpoint!r} is no endpoint: {error}; expected tcp://HOST:PORT or ipc://PATH"
            ) from error
        socket.send_multipart([b"", to_frame(start)])
        while True:
            if not socket.poll(int(timeout_s * 1000)):
                raise ReplayError(f"{endpoint} did not answer within {timeout_s:g} s; is it a replay endpoint?")
            frames = socket.recv_multipart()
            if frames[:1] == [b""]:
                del frames[0]
            if len(frames) == 2:  # before vLLM #45177 answers had no topic
                frames.insert(0, b"")
            if len(frames) != 3:
                raise ReplayError(f"{endpoint} answered with {len(frames)} frames; expected topic, seq, payload")
            if frames[1] == END_SEQ:
                return
            yield Message(frames, replayed=True, at=time.time_ns() / 1e9)
    finally:
        socket.close(linger=0)
