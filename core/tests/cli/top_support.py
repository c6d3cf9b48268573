"""Expositions as endpoints give them, made by the real observers; and a server whose exposition a test writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from prometheus_client import generate_latest

from core.tests.observe.support import INFO, fresh
from kv_core.cli.top.readings import Reading, parse
from kv_core.contract.enums import FailureCode, FailureStage, KVPoll, Liveness, Role, Side
from kv_core.contract.failures import Failure
from kv_core.contract.records import KVTransferMetric, PeerEvent, RoomEvent, RoomEventKind

LIMIT_S = 60.0


class Process:
    """One process that counts what it is told."""

    def __init__(self, *roles: Role) -> None:
        self.registry, self._metrics = fresh()
        self._observers = {role: self._metrics.observer(INFO, role) for role in roles}
        self.live: dict[str, Any] = {"fabrics": {"p": "rdma mlx5"}, "peers": 2, "rooms_by_phase": {"moving": 3}}
        for observer in self._observers.values():
            observer.watch(lambda: self.live)

    def succeed(
        self, role: Role, rooms: int, *, nbytes: int = 1_000, wire_s: float = 0.001, total_s: float = 0.002
    ) -> None:
        """So many rooms go well."""
        metric = KVTransferMetric(wire_s, nbytes, total_latency_s=total_s, chunks=1, latency_source="core")
        for number in range(rooms):
            self._tell(role, RoomEventKind.OPENED, number, KVPoll.Bootstrapping)
            self._tell(role, RoomEventKind.CONCLUDED, number, KVPoll.Success, metric=metric)

    def fail(self, role: Role, stage: FailureStage, code: FailureCode, rooms: int = 1) -> None:
        """So many rooms fail."""
        failure = Failure(stage, code, "as the test has it", Side.FABRIC)
        for number in range(rooms):
            self._tell(role, RoomEventKind.OPENED, number, KVPoll.Bootstrapping)
            self._tell(role, RoomEventKind.CONCLUDED, number, KVPoll.Failed, failure=failure)

    def lose_peer(self, role: Role) -> None:
        """A peer is met and lost."""
        observer = self._observers[role]
        observer.kv_peer_event(PeerEvent("test", role, "p", Liveness.OK, "", 1.0))
        observer.kv_peer_event(
            PeerEvent("test", role, "p", Liveness.DEAD, "gone", 2.0, before=Liveness.OK, code=FailureCode.PEER_LOST)
        )

    def _tell(self, role: Role, kind: RoomEventKind, room: int, state: KVPoll, **more: Any) -> None:
        self._observers[role].kv_room_event(RoomEvent(kind, "test", role, room, 1, state, 1.0, **more))

    def text(self) -> str:
        """What it answers to a scrape."""
        return generate_latest(self.registry).decode()

    def read(self, at_s: float) -> Reading:
        """The same, read."""
        return parse(self.text(), at_s)


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Address of a server that answers every request so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(LIMIT_S)
