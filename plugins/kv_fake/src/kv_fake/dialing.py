"""Connections to a peer's NIC: how they are made, and what both directions do with them."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable

from kv_fake.wire import ACCEPTED, LOOPBACK_BUFFER_BYTES, REFUSED, Descriptor, Preamble, Purpose

CONNECT_S = 5.0
JOIN_S = 5.0
FROZEN_S = 0.05


class NotWelcome(ConnectionError):
    """A NIC answered, and takes nothing from us. A class of its own: the kernel has errors of that number, too."""


def dial(
    where: Descriptor, me: str, generation: int, purpose: Purpose, number: int, keep: Callable[[socket.socket], None]
) -> socket.socket:  # fmt: skip
    """A connection that the peer's NIC has accepted. ``keep`` is given the socket before it connects, so that another thread
    can shut it; it may raise. Raises ``OSError``, and ``UnicodeError`` for what is no host name at all; the socket is closed then.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)[0]
    connection = socket.socket(family, kind, protocol)
    try:
        keep(connection)
        connection.settimeout(CONNECT_S)
        if ipaddress.ip_address(address[0]).is_loopback:
            # There is nothing to be congested. BBR, where it is the system's default, paces what it sends all the
            # same: measured, half the rate at twice the processor time. Reno is in every kernel. It is chosen before
            # the connection is made: one that BBR has begun is paced for ever, whoever takes over.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOOPBACK_BUFFER_BYTES)
            if purpose is Purpose.READ:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LOOPBACK_BUFFER_BYTES)
        connection.connect(address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # unsent bytes die
        connection.sendall(Preamble(where.token, me, generation, purpose, number).pack())
        answer = connection.recv(1)
        if answer == REFUSED:
            raise NotWelcome(errno.EPERM, "the peer's NIC does not accept us (fenced, or another one by now)")
        if answer != ACCEPTED:
            raise ConnectionResetError(errno.ECONNRESET, f"no answer of a NIC ({answer!r})")
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


def exactly(connection: socket.socket, count: int, *, may_end: bool = False) -> bytes:
    """So many bytes; waits. Raises ``ConnectionResetError`` if the stream ends before; with ``may_end`` b"" if at once."""
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = connection.recv_into(view)
        if got == 0:
            if may_end and len(view) == count:
                return b""
            raise ConnectionResetError(errno.ECONNRESET, "the stream ended early")
        view = view[got:]
    return bytes(data)


def shutdown(connection: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """Shut it down, unless it is so already."""
    try:
        connection.shutdown(how)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.EBADF):
            raise
