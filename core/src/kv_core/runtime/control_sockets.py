"""The two ROUTER sockets of a control channel: what they have in common, and the one that listens.

Facts about libzmq 4.3.5 that the channel is built on, each found by experiment or in its source:

- A routing id given with CONNECT_ROUTING_ID stays with its connection through all reconnects, and what is sent before the
  first connect is queued. Giving out one that is still in use aborts the *process* (an assertion in router.cpp), and a
  disconnected connection keeps its own while it lingers: so every connection gets an id of its own, never used again.
- Whoever says anything but ZMTP (a web server, say) is taken for a peer that speaks ZMTP 1.0, and then a connection that
  reconnects or is being closed aborts the process as well (zmtp_engine.cpp, process_routing_id_msg). A ZAP domain makes
  the library refuse every version before 3.0; without a ZAP handler in the context it has no other effect.
- A connection that breaks is told at once (DISCONNECTED); every failed attempt, whatever the cause, is told as CLOSED.
- An event names the numeric address, not the routing id. Events of a connection that lingers can't be told from those of
  its successor; at worst they cause one probe too many.
- After a violation of the protocol the library gives a connection up without a word; the next ``send`` finds it unroutable.
- A context that runs out of file descriptors while it starts its threads aborts the process; later on it only waits.
- The monitor blocks the one I/O thread when its pipe is full: hence no limit on that pipe, and few event types.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack

import zmq

from kv_core.contract.failures import KVCoreError
from kv_core.runtime.control_address import bind_address
from kv_core.runtime.control_types import Frame, Incoming

QUEUE_LENGTH = 128
"""Frames of one peer that wait to be read; beyond that, TCP holds the peer back."""
BACKLOG = 1_024
HANDSHAKE_MS = 10_000
FRAMES_PER_TAKE = 256
DESCRIPTORS = 32
"""More than a channel without peers holds open (about 15)."""


def require_descriptors() -> None:
    """Raise ``OSError`` if a channel's files can't be opened: the library aborts the process when it runs out half way."""
    with ExitStack() as files:
        for _ in range(DESCRIPTORS):
            files.enter_context(open(os.devnull, "rb", buffering=0))  # noqa: PTH123 - that is quite enough of a file


def router(context: zmq.Context[zmq.Socket[bytes]], max_bytes: int) -> zmq.Socket[bytes]:
    """A ROUTER socket with what both directions have in common."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
    socket.setsockopt(zmq.ZAP_DOMAIN, b"kv-core")  # keeps old protocol versions out: see above
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    return socket


class Inbound:
    """The socket that listens. Belongs to one thread. ``dropped`` counts what was not taken, by reason."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], max_bytes: int, dropped: Counter[str]) -> None:
        self._context = context
        self._max_bytes = max_bytes
        self._dropped = dropped
        self.taken = 0

    def open(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises ``KVCoreError`` if that can't be."""
        where = bind_address(host, port)
        self._socket = router(self._context, self._max_bytes)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, QUEUE_LENGTH)
        self._socket.setsockopt(zmq.BACKLOG, BACKLOG)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self._socket.setsockopt(zmq.IPV6, int("[" in where))
        try:
            self._socket.bind(where)
        except zmq.ZMQError as error:
            raise KVCoreError(
                f"the control channel can't listen on {where}: {zmq.strerror(error.errno or 0)}; TransferConfig.host must "
                f"be an address of this machine, and control_port a free port (0 takes one)"
            ) from error
        return int(str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT)).rpartition(":")[2])

    def watch(self, poller: zmq.Poller) -> None:
        """Register what may have something for ``take``."""
        poller.register(self._socket, zmq.POLLIN)

    def take(self, ready: set[object], incoming: list[Incoming]) -> None:
        """Append a bounded number of frames. ``ready``: what the poller said."""
        if self._socket not in ready:
            return
        for _ in range(FRAMES_PER_TAKE):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(parts) == 2:
                self.taken += 1
                incoming.append(Frame(parts[1]))
            else:
                self._dropped["not_two_frames"] += 1

    def close(self) -> None:
        """Listen no more."""
        self._socket.close(0)
