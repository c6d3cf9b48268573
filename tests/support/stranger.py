"""Speaks the control protocol by hand: a peer that says what no real one would."""

from __future__ import annotations

import uuid
from importlib.metadata import version
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import zmq

from kv_core import BaseKVManager, KVArgs
from kv_core.layout import MemoryLayout
from kv_core.protocol.handshake import fields_of
from kv_core.protocol.messages import Codec, Data, Hello, Introduction, Packet
from kv_fake.wire import Descriptor
from tests.support.pair import BACKEND

if TYPE_CHECKING:
    from typing_extensions import Self

P = TypeVar("P")
LIMIT_S = 20.0
NOWHERE = Descriptor("127.0.0.1", 9, bytes(16)).pack()
"""What a transport takes for the way to a peer, and nobody is there."""


class Stranger:
    """One ROUTER to be answered at, and one DEALER for each manager that it speaks to."""

    def __init__(self) -> None:
        self.instance_id = uuid.uuid4().hex
        self.codec = Codec(32 << 20)
        self._context = zmq.Context()
        self._inbound = self._context.socket(zmq.ROUTER)
        port = self._inbound.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self._outbound: dict[str, zmq.Socket[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._context.destroy(linger=0)

    def hello(self, manager: BaseKVManager, args: KVArgs, rooms: list[int], session: int = 1, **changes: Any) -> Hello:
        """What a decode rank with this memory would say to greet this manager."""
        introduction = Introduction(
            fields=fields_of(args, BACKEND, version(f"kv-{BACKEND}"), version("kv-core")),
            layout=MemoryLayout.of(args).to_wire(), descriptor=NOWHERE, endpoint=self.endpoint, label="a stranger",
        )  # fmt: skip
        values: dict[str, Any] = {
            "sender": self.instance_id, "receiver": manager.instance_id, "session": session,  # type: ignore[attr-defined]
            "introduction": introduction, "rooms": rooms,
        }  # fmt: skip
        return Hello(**(values | changes))

    def send(self, manager: BaseKVManager, packet: Packet | bytes) -> None:
        """One frame to a manager's control socket."""
        endpoint: str = manager.endpoint  # type: ignore[attr-defined]
        if endpoint not in self._outbound:
            self._outbound[endpoint] = self._context.socket(zmq.DEALER)
            self._outbound[endpoint].connect(endpoint)
        self._outbound[endpoint].send(packet if isinstance(packet, bytes) else self.codec.encode(packet))

    def receive(self, kind: type[P]) -> P:
        """The next packet of this kind; others are passed over."""
        deadline = monotonic() + LIMIT_S
        while True:
            if not self._inbound.poll(max(0, int(1_000 * (deadline - monotonic())))):
                raise AssertionError(f"no {kind.__name__} came within {LIMIT_S:g} s")
            packet = self.codec.decode(self._inbound.recv_multipart()[-1])
            if isinstance(packet, kind):
                return packet

    def receive_message(self, kind: type[P]) -> P:
        """The next message of this kind in a data packet."""
        while True:
            for message in self.receive(Data).messages:
                if isinstance(message, kind):
                    return message
