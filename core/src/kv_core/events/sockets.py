"""Makes the two sockets of a publisher: bound first, so that what is told to others is what was really got."""

from __future__ import annotations

import time

import zmq

from kv_core.contract.failures import InvalidConfig

Socket = zmq.Socket[bytes]

LET_GO_S = 2.0
"""ZeroMQ gives a port back in the background: so long a predecessor in this process, or a lingering one, may take for it."""


def pub_socket(context: zmq.Context[Socket], endpoint: str, *, bind: bool, hwm: int) -> tuple[Socket, str]:
    """A PUB socket and the endpoint that it has got (with its port, where 0 was asked for). Raises ``InvalidConfig``."""
    socket = context.socket(zmq.PUB)
    socket.setsockopt(zmq.SNDHWM, hwm)
    return _opened(socket, endpoint, bind=bind)


def router_socket(context: zmq.Context[Socket], endpoint: str, *, ring: int) -> tuple[Socket, str]:
    """A ROUTER socket whose queue for each reader holds a whole ring, a note in front, and the end. Raises as above."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.SNDHWM, ring + 2)
    # Refuses instead of dropping: EAGAIN where a reader has no room, EHOSTUNREACH where it has gone.
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    return _opened(socket, endpoint, bind=True)


def _opened(socket: Socket, endpoint: str, *, bind: bool) -> tuple[Socket, str]:
    if "[" in endpoint or "::" in endpoint:
        socket.setsockopt(zmq.IPV6, 1)
    try:
        if not bind:
            socket.connect(endpoint)
            return socket, endpoint
        _bind(socket, endpoint)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        verb = "bind" if bind else "connect to"
        hint = (
            "; another process, or another rank, has it: choose another port, or 0"
            if error.errno == zmq.EADDRINUSE
            else ""
        )
        raise InvalidConfig(f"KV events: cannot {verb} {endpoint!r}: {error}{hint}") from error
    got = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    return socket, got if endpoint.startswith("tcp://") else endpoint


def _bind(socket: Socket, endpoint: str) -> None:
    end = time.monotonic() + LET_GO_S
    while True:
        try:
            socket.bind(endpoint)
            return
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or time.monotonic() > end:
                raise
            time.sleep(0.02)


def bound_xpub(context: zmq.Context[Socket], endpoint: str) -> tuple[Socket, str]:
    """As ``pub_socket``, but it can be read who has subscribed; drops nothing. Raises ``InvalidConfig``."""
    socket = context.socket(zmq.XPUB)
    socket.setsockopt(zmq.SNDHWM, 0)
    return _opened(socket, endpoint, bind=True)
