"""A stranger whom a rank takes for a peer, and who keeps his session alive for as long as he is let."""

from __future__ import annotations

import secrets
import socket
import uuid
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec
import requests
import zmq

from kv_core import BootstrapServer
from kv_core.contract.failures import MessageError
from kv_core.layout import MemoryLayout
from kv_core.protocol import messages as msg
from kv_core.protocol.handshake import fields_of
from kv_core.runtime.bootstrap import RankRegistration
from kv_fake.wire import Descriptor
from tests.support.long_noise import ALIEN, Acquaintance
from tests.support.memory import RankMemory, Shape
from tests.support.orders import Order
from tests.support.rank import RankProcess
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

BACKEND = "fake"
ROOM = ALIEN - 1
"""The room for which decode greets him."""


class LivingStranger:
    """To a prefill rank he says that he is a decode rank, and the other way round."""

    def __init__(self, shape: Shape, rank: RankProcess) -> None:
        self.rank = rank
        self.me = uuid.uuid4().hex
        self.session = 1
        self.theirs: msg.Introduction | None = None
        self._highest = 0
        self._memory = RankMemory(shape)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._codec = msg.Codec(32 << 20)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbound = self._context.socket(zmq.ROUTER)
        self._inbound.setsockopt(zmq.RCVHWM, 0)
        self.port = self._inbound.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self._outbound = self._context.socket(zmq.DEALER)
        self._outbound.connect(rank.endpoint)
        args = self._memory.args()
        self._introduction = msg.Introduction(
            fields=fields_of(args, BACKEND, version(f"kv-{BACKEND}"), version("kv-core")),
            layout=MemoryLayout.of(args).to_wire(), descriptor=self._descriptor(), endpoint=self.endpoint, label="a stranger",
        )  # fmt: skip
        self._server: BootstrapServer | None = None

    def __enter__(self) -> Self:
        try:
            if self.rank.role == "prefill":
                self._say(msg.Hello(**self._head, introduction=self._introduction, rooms=[]))
            else:
                self._lure()
            wait_until(self._met, f"a session with {self.rank.name}")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Go without a word."""
        self._context.destroy(linger=0)
        self._listener.close()
        if self._server is not None:
            self._server.close()

    def _descriptor(self) -> bytes:
        """Of a data port where he never answers."""
        return Descriptor("127.0.0.1", self._listener.getsockname()[1], secrets.token_bytes(16)).pack()

    @property
    def _head(self) -> dict[str, Any]:
        return {"sender": self.me, "receiver": self.rank.instance_id, "session": self.session}

    def _say(self, packet: msg.Packet) -> None:
        self._outbound.send(self._codec.encode(packet))

    def _lure(self) -> None:
        """Stand in a bootstrap server, and give decode a room there."""
        args = self._memory.args()
        self._server = BootstrapServer(port=0, registration_ttl_s=3_600.0)
        registration = RankRegistration(
            instance_id=self.me, ranks=(0, 0, 0, 0), sizes=(1, 1, 1, 1), rank_ip="127.0.0.1", rank_port=self.port,
            page_size=args.page_size, kv_cache_dtype=args.dtype, kv_layout=args.kv_layout, backend=BACKEND,
            protocol_version=msg.PROTOCOL_VERSION,
        )  # fmt: skip
        answer = requests.put(
            f"http://{self._server.address}/route", registration.encode(), timeout=30,
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        self.rank.open([Order(ROOM, self._server.address, act="idle:pages")])

    def _met(self) -> bool:
        self.live()
        return self.theirs is not None

    def live(self) -> None:
        """Answer what has come in: pings, and what has to be acknowledged."""
        answered = self._highest
        while self._inbound.poll(0):
            try:
                packet = self._codec.decode(self._inbound.recv_multipart()[-1])
            except MessageError:
                continue  # an answer to somebody whose name the stranger's enemies made up
            if packet.receiver != self.me:
                continue
            if isinstance(packet, msg.Hello) and self.theirs is None:
                self.theirs, self.session = packet.introduction, packet.session
                self._say(msg.Welcome(**self._head, introduction=self._introduction))
            elif isinstance(packet, msg.Welcome):
                self.theirs = packet.introduction
            elif isinstance(packet, msg.Ping):
                self._say(msg.Pong(**self._head, number=packet.number, ack=self._highest, stalled_s=0.0))
            elif isinstance(packet, msg.Data):
                self._highest = max(self._highest, packet.seq + len(packet.messages) - 1)
        if self._highest != answered:
            self._say(msg.Data(**self._head, seq=0, ack=self._highest, messages=[]))

    def acquaintance(self) -> Acquaintance:
        """What he knows."""
        assert self.theirs is not None, "they have met"
        return Acquaintance(
            self.rank.endpoint, self.rank.instance_id, self.rank.role, self.me, self.session, self.endpoint,
            msgspec.msgpack.encode(self._introduction), self.theirs.descriptor,
        )  # fmt: skip

    def leave(self) -> None:
        """Say goodbye; the room that decode greeted him for is given up."""
        if self.rank.role == "decode":
            self.rank.call("abort", rooms=[ROOM])
        self._say(msg.Bye(**self._head, quiescent=True))
