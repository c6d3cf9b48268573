"""The ZeroMQ side of a manager's control plane: frames in, frames out, and who has gone.

One ROUTER socket is bound for what comes in; one more connects to everybody (``control_outbound``). Packets carry their
sender's instance id themselves, so the identities of ZeroMQ mean nothing here, and nothing is answered on the
connection that it came in on.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from time import monotonic
from typing import Any

import zmq

from kv_core.contract.failures import InvalidConfig, KVCoreError
from kv_core.runtime.bootstrap.addresses import canonical_host, format_address, is_wildcard
from kv_core.runtime.control_address import SCHEME, Address, NameResolver, numeric_address, parse_endpoint
from kv_core.runtime.control_outbound import Connection, Outbound
from kv_core.runtime.control_sockets import Inbound, require_descriptors
from kv_core.runtime.control_types import ConnectionLost, ConnectionRefused, Frame, Incoming
from kv_core.runtime.control_wake import WakeUp

__all__ = ["ConnectionLost", "ConnectionRefused", "ControlChannel", "Frame", "Incoming"]

HELD_PER_NAME = 64
"""Frames that wait until the name in their endpoint is resolved."""
DROP_REASONS = (
    "bad_endpoint", "closed", "evicted", "no_handshake", "not_two_frames", "queue_full", "too_long", "too_many_connections",
    "unresolved", "unroutable", "wrong_way",
)  # fmt: skip


class ControlChannel:
    """Sends to endpoints and receives from anybody.

    ``host``, ``port``: where to listen (an address of this machine; port 0 takes a free one). ``advertised_host``: what
    peers are told (None: ``host``). ``max_bytes``: longest frame, in both directions. ``max_connections``: outbound ones.

    Belongs to one thread from ``open`` to ``close``; only ``wake``, ``backlog`` and ``snapshot`` may be called by any.
    After ``close`` nothing is sent and nothing comes in any more.
    """

    def __init__(
        self, host: str, port: int, advertised_host: str | None, max_bytes: int, logger: logging.Logger,
        *, max_connections: int = 4_096,
    ) -> None:  # fmt: skip
        self._host = host
        self._port = port
        self._advertised = advertised_host or host
        self._max_bytes = max_bytes
        self._logger = logger
        self._max_connections = max_connections
        self._wake = WakeUp()
        self._names = NameResolver(self._wake.signal)
        self._connections: dict[str, Connection] = {}  # by endpoint, as the caller writes it
        self._held: dict[str, deque[bytes]] = {}  # by endpoint, until its name is resolved
        self._dropped: Counter[str] = Counter(dict.fromkeys(DROP_REASONS, 0))
        self._sent = 0
        self._endpoint: str | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._open = False
        self._closing = threading.Lock()

    @property
    def endpoint(self) -> str:
        """What peers send to: ``tcp://advertised:port``. Raises ``KVCoreError`` before ``open``."""
        if self._endpoint is None:
            raise KVCoreError("the control channel has no endpoint before open()")
        return self._endpoint

    @property
    def backlog(self) -> int:
        """Frames that wait for a name to be resolved. Any thread."""
        return sum(len(frames) for frames in list(self._held.values()))

    # -- life ------------------------------------------------------------------------------------------------------

    def open(self) -> str:
        """Listen, once; returns the endpoint. Raises ``InvalidConfig`` or ``KVCoreError`` with what to change."""
        if self._endpoint is not None:
            raise KVCoreError("a control channel is opened once: make another one")
        host, advertised = _bare(self._host), _bare(self._advertised)
        if is_wildcard(advertised):
            raise InvalidConfig(
                f"peers can't connect to {advertised!r}: set TransferConfig.advertised_host to an address or a name of "
                f"this machine that they can reach (host {host!r} may stay)"
            )
        try:
            require_descriptors()
            # A context of its own: closing it ends its threads, and nobody else's sockets are in it.
            self._context = zmq.Context()
            port = self._open_sockets(self._context, host)
        except (OSError, zmq.ZMQError) as error:
            self._abandon()
            raise KVCoreError(
                f"the control channel can't be opened: {error} (see `ulimit -n` if it is files)"
            ) from error
        except BaseException:
            self._abandon()
            raise
        self._endpoint = SCHEME + format_address(advertised, port)
        self._open = True
        return self._endpoint

    def _open_sockets(self, context: zmq.Context[zmq.Socket[bytes]], host: str) -> int:
        self._inbound = Inbound(context, self._max_bytes, self._dropped)
        self._outbound = Outbound(context, self._max_connections, self._dropped)
        port = self._inbound.open(host, self._port)
        self._outbound.open()
        self._poller = zmq.Poller()
        self._wake_descriptor = self._wake.open()
        self._poller.register(self._wake_descriptor, zmq.POLLIN)
        self._inbound.watch(self._poller)
        self._outbound.watch(self._poller)
        return port

    def _abandon(self) -> None:
        if self._context is not None:
            self._outbound.abandon()
            self._context.destroy(0)
            self._context = None
        self._wake.close()

    def close(self) -> None:
        """Send what is queued for at most half a second, then let go of every socket and thread. Idempotent."""
        with self._closing:
            if not self._open:
                return
            self._open = False
        assert self._context is not None
        self._dropped["closed"] += self.backlog
        self._held.clear()
        self._connections.clear()
        self._outbound.close()
        self._inbound.close()
        self._context.term()
        if not self._names.close():
            self._logger.warning("a name server still has not answered: the thread that asked it ends when it does")
        self._wake.close()
        self._context = None

    # -- sending ---------------------------------------------------------------------------------------------------

    def send(self, endpoint: str, data: bytes) -> bool:
        """Queue a frame for this endpoint, connecting if need be. Never blocks, never raises for a peer's sake.

        False if it was dropped: the queue to that endpoint is full, the endpoint is none, or there are too many. True
        promises nothing.
        """
        if not self._open:
            return self._drop("closed")
        if len(data) > self._max_bytes:
            return self._drop("too_long")
        connection = self._live(endpoint)
        if connection is not None:
            if self._send_on(connection, data):
                return True
            if self._live(endpoint) is not None:
                return False
        return self._send_first(endpoint, data)

    def _live(self, endpoint: str) -> Connection | None:
        connection = self._connections.get(endpoint)
        return None if connection is None or connection.dropped else connection

    def _send_on(self, connection: Connection, data: bytes) -> bool:
        sent = self._outbound.send(connection, data)
        self._sent += sent
        return sent

    def _send_first(self, endpoint: str, data: bytes) -> bool:
        self._connections.pop(endpoint, None)
        if endpoint in self._held:
            return self._hold(endpoint, data)
        try:
            host, port = parse_endpoint(endpoint)
        except InvalidConfig as error:
            self._logger.debug("a frame was dropped: %s", error)
            return self._drop("bad_endpoint")
        address = numeric_address(host, port)
        if address is not None:
            connection = self._connect(endpoint, address)
            return connection is not None and self._send_on(connection, data)
        if not self._names.submit(endpoint, host, port):
            return self._drop("too_many_connections")
        self._held[endpoint] = deque()
        return self._hold(endpoint, data)

    def _hold(self, endpoint: str, data: bytes) -> bool:
        frames = self._held[endpoint]
        if len(frames) >= HELD_PER_NAME:
            return self._drop("queue_full")
        frames.append(data)
        return True

    def _connect(self, endpoint: str, address: Address) -> Connection | None:
        connection = self._outbound.connect(endpoint, address, monotonic())
        if connection is None:
            self._drop("too_many_connections")
            return None
        self._connections[endpoint] = connection
        return connection

    def _drop(self, reason: str) -> bool:
        self._dropped[reason] += 1
        return False

    def disconnect(self, endpoint: str) -> None:
        """Nobody there is spoken to any more. What is queued may still go out for half a second."""
        for _ in range(len(self._held.pop(endpoint, ()))):
            self._drop("closed")
        connection = self._live(endpoint)
        self._connections.pop(endpoint, None)
        if connection is None:
            return
        connection.endpoints.remove(endpoint)
        if not connection.endpoints:
            self._outbound.drop(connection, linger=True)

    def sweep(self, now: float) -> None:
        """Disconnect endpoints to which nothing was sent for a minute. Call every few seconds, ``now`` monotonic."""
        self._outbound.sweep(now)
        for endpoint, connection in list(self._connections.items()):
            if connection.dropped:
                del self._connections[endpoint]

    # -- receiving -------------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> list[Incoming]:
        """What has come in, waiting for it if there is nothing. A bounded number at once; ``wake`` ends the wait."""
        if not self._open:
            return []
        deadline = self._outbound.next_deadline()
        if deadline is not None:
            timeout_s = min(timeout_s, deadline - monotonic())
        ready = {source for source, _ in self._poller.poll(max(0, int(timeout_s * 1_000 + 0.999)))}
        if self._wake_descriptor in ready:
            # Before anything else is looked at: who hands something over from now on wakes us again.
            self._wake.clear()
        self._take_names()
        incoming = self._outbound.step(monotonic(), ready)
        self._inbound.take(ready, incoming)
        return incoming

    def _take_names(self) -> None:
        if not self._names.waiting:
            return
        for endpoint, address in self._names.results():
            frames = self._held.pop(endpoint, None)
            if not frames:
                continue
            connection = self._connect(endpoint, address) if address is not None else None
            for data in frames:
                if connection is None:
                    self._drop("unresolved")
                else:
                    self._send_on(connection, data)

    def wake(self) -> None:
        """End a wait in ``poll``, or the next one. Any thread; cheap; does nothing before ``open`` and after ``close``."""
        self._wake.signal()

    def snapshot(self) -> dict[str, Any]:
        """Counts: ``connections``, ``established``, ``probes``, ``resolving`` and ``backlog`` are of now, the others grow.

        Any thread.
        """
        alive = self._outbound.counts() if self._open else {"connections": 0, "established": 0, "probes": 0}
        taken = self._inbound.taken if self._endpoint is not None else 0
        return {
            **alive, "resolving": self._names.waiting, "backlog": self.backlog, "frames_in": taken,
            "frames_out": self._sent, "dropped": dict(self._dropped),
        }  # fmt: skip


def _bare(host: str) -> str:
    return canonical_host(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
