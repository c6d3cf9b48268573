"""The outbound half of a control channel: one ROUTER socket for every peer, and the monitor that tells how they fare.

Built on the facts in ``control_sockets``.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq

from kv_core.runtime.control_address import Address
from kv_core.runtime.control_probe import RefusalProbes
from kv_core.runtime.control_sockets import router
from kv_core.runtime.control_types import ConnectionLost, ConnectionRefused, Incoming

QUEUE_LENGTH = 1_000
"""Frames queued for one endpoint."""
LINGER_MS = 500
RECONNECT_MS = 50
RECONNECT_MAX_MS = 1_000
CONNECT_TIMEOUT_MS = 5_000
IDLE_S = 60.0
MAX_FAILED_HANDSHAKES = 5
"""Connections in a row that somebody took and closed before he spoke the protocol."""
EVENTS_PER_STEP = 1_024
MAX_REPLY_BYTES = 4_096
"""Nobody has anything to say this way; the library's own handshake needs a few hundred bytes."""
_EVENT = struct.Struct("=HI")
_EVENTS = (
    zmq.Event.CONNECTED | zmq.Event.CONNECT_DELAYED | zmq.Event.CLOSED | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_SUCCEEDED
)  # fmt: skip


@dataclass(eq=False)
class Connection:
    """One connection, and the endpoints that stand for its address."""

    address: Address
    routing_id: bytes
    endpoints: list[str] = field(default_factory=list)
    established: bool = False
    descriptor: int = -1
    attempt_at: float = math.inf
    failed_handshakes: int = 0
    used: bool = True
    idle_since: float = 0.0
    dropped: bool = False


class Outbound:
    """Connections by address. Belongs to one thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], max_connections: int, dropped: Counter[str]) -> None:
        self._context = context
        self._max_connections = max_connections
        self._connections: dict[str, Connection] = {}  # by the address's uri, oldest first
        # Routing ids that nobody can guess: a peer that claimed one for itself would trip the same assertion.
        self._salt = os.urandom(8)
        self._numbers = itertools.count()
        self._probes = RefusalProbes()
        self._dropped = dropped
        self._handlers: dict[int, Callable[[Connection, int, float], list[Incoming]]] = {
            zmq.Event.CONNECT_DELAYED: self._on_attempt, zmq.Event.CONNECTED: self._on_connected,
            zmq.Event.HANDSHAKE_SUCCEEDED: self._on_established, zmq.Event.DISCONNECTED: self._on_broken,
            zmq.Event.CLOSED: self._on_failed_attempt,
        }  # fmt: skip

    def open(self) -> None:
        """Make the sockets."""
        self._socket = router(self._context, MAX_REPLY_BYTES)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, QUEUE_LENGTH)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        self._socket.monitor("inproc://events", _EVENTS)
        self._monitor = self._context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.connect("inproc://events")

    def watch(self, poller: zmq.Poller) -> None:
        """Register everything that may have something for ``step``."""
        for source in (self._socket, self._monitor, self._probes.open()):
            poller.register(source, zmq.POLLIN)

    # -- connections -----------------------------------------------------------------------------------------------

    def connect(self, endpoint: str, address: Address, now: float) -> Connection | None:
        """The connection to this address, made if there is none; the endpoint stands for it from now on.

        None if there are too many connections and each is established.
        """
        connection = self._connections.get(address.uri)
        if connection is None:
            if len(self._connections) >= self._max_connections and not self._make_room():
                return None
            connection = Connection(address, self._salt + b"%d" % next(self._numbers), idle_since=now)
            self._begin(connection)
            self._connections[address.uri] = connection
        connection.endpoints.append(endpoint)
        return connection

    def _begin(self, connection: Connection) -> None:
        self._socket.setsockopt(zmq.IPV6, int(connection.address.is_ipv6))
        self._socket.setsockopt(zmq.CONNECT_ROUTING_ID, connection.routing_id)
        self._socket.connect(connection.address.uri)

    def _make_room(self) -> bool:
        """Addresses come from the network: those where nobody ever answered go first."""
        for connection in self._connections.values():
            if not connection.established:
                self.drop(connection, linger=False)
                self._dropped["evicted"] += 1
                return True
        return False

    def drop(self, connection: Connection, *, linger: bool) -> None:
        """Disconnect. ``linger``: what is queued may still go out for a moment, if somebody takes it."""
        connection.dropped = True
        self._connections.pop(connection.address.uri, None)
        if not linger:
            self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.disconnect(connection.address.uri)
        except zmq.ZMQError as error:
            # The library gave the connection up by itself: somebody there broke the protocol.
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise
        finally:
            self._socket.setsockopt(zmq.LINGER, LINGER_MS)

    def send(self, connection: Connection, data: bytes) -> bool:
        """Queue one frame. False if the queue is full, or if the connection turned out to be gone: it is dropped then."""
        connection.used = True
        try:
            self._socket.send(connection.routing_id, zmq.NOBLOCK | zmq.SNDMORE)
            self._socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            self._dropped["queue_full"] += 1
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self.drop(connection, linger=False)
        else:
            return True
        return False

    def sweep(self, now: float) -> list[Connection]:
        """Drop the connections that nothing was sent on for ``IDLE_S``; returns them."""
        idle = []
        for connection in list(self._connections.values()):
            if connection.used:
                connection.used, connection.idle_since = False, now
            elif now - connection.idle_since >= IDLE_S:
                self.drop(connection, linger=True)
                idle.append(connection)
        return idle

    # -- events ----------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When ``step`` has to be called at the latest."""
        return self._probes.next_deadline()

    def step(self, now: float, ready: set[object]) -> list[Incoming]:
        """Take what the monitor and the probes have to tell, and throw away what peers send the wrong way.

        ``ready``: what the poller said.
        """
        if self._socket in ready:
            self._take_replies()
        incoming = self._take_events(now) if self._monitor in ready else []
        if len(self._probes):
            for address in self._probes.step(now):
                incoming += self._on_refused(address)
        return incoming

    def _take_events(self, now: float) -> list[Incoming]:
        incoming: list[Incoming] = []
        for _ in range(EVENTS_PER_STEP):
            try:
                header, uri = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            connection = self._connections.get(uri.decode("utf-8", "replace"))
            if connection is not None:
                kind, value = _EVENT.unpack(header)
                incoming += self._handlers[kind](connection, value, now)
        return incoming

    def _take_replies(self) -> None:
        for _ in range(EVENTS_PER_STEP):
            try:
                self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._dropped["wrong_way"] += 1

    def _on_attempt(self, connection: Connection, _value: int, now: float) -> list[Incoming]:
        connection.attempt_at = now
        return []

    def _on_connected(self, connection: Connection, descriptor: int, _now: float) -> list[Incoming]:
        connection.descriptor = descriptor
        return []

    def _on_established(self, connection: Connection, _value: int, _now: float) -> list[Incoming]:
        connection.established = True
        connection.failed_handshakes = 0
        return []

    def _on_broken(self, connection: Connection, descriptor: int, _now: float) -> list[Incoming]:
        if descriptor != connection.descriptor:
            return []
        if connection.established:
            connection.established = False
            return [ConnectionLost(endpoint) for endpoint in connection.endpoints]
        # If it was the protocol that failed, the library has given the connection up, and ``send`` will notice.
        connection.failed_handshakes += 1
        if connection.failed_handshakes >= MAX_FAILED_HANDSHAKES:
            self._dropped["no_handshake"] += 1
            self.drop(connection, linger=False)
        return []

    def _on_failed_attempt(self, connection: Connection, _value: int, now: float) -> list[Incoming]:
        # An attempt that took this long was not refused but ran out of time. Saves the probe's time, proves nothing.
        if now - connection.attempt_at < 0.8 * CONNECT_TIMEOUT_MS / 1_000:
            self._probes.ask(connection.address)
        connection.attempt_at = math.inf  # the next attempt may fail without having been told as begun
        return []

    def _on_refused(self, address: Address) -> list[Incoming]:
        connection = self._connections.get(address.uri)
        if connection is None or connection.established:
            return []
        self.drop(connection, linger=False)
        return [ConnectionRefused(endpoint) for endpoint in connection.endpoints]

    # -- end -------------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """What is alive. Any thread."""
        connections = list(self._connections.values())
        return {
            "connections": len(connections), "established": sum(c.established for c in connections),
            "probes": len(self._probes),
        }  # fmt: skip

    def abandon(self) -> None:
        """Let go of what is not in the context: enough where the sockets are closed with it."""
        self._probes.close()

    def close(self) -> None:
        """Close the sockets; what is queued lingers in the context for ``LINGER_MS``."""
        self.abandon()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(LINGER_MS)
        self._connections.clear()
