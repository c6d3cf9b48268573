"""Bootstrap failures that never got an HTTP answer, told apart by what was seen."""

from __future__ import annotations

from enum import Enum

from kv_core.contract.failures import BootstrapError


class ConnectionTrouble(str, Enum):
    """What was seen instead of an answer."""

    REFUSED = "refused"  # the host answered: nobody listens there; a killed process looks like this
    CLOSED = "closed"  # the connection was taken and then closed or reset without an answer
    TIMEOUT = "timeout"  # nothing came in time: a black hole, a frozen process, a lost network
    UNREACHABLE = "unreachable"  # no route, host down, name not found
    PROTOCOL = "protocol"  # something answered, but not in HTTP
    LOCAL = "local"  # this process has no descriptors, ports or memory left: says nothing about the server


class BootstrapConnectionError(BootstrapError):
    """No HTTP answer came from the bootstrap server (``status`` is 0); ``trouble`` says what was seen instead."""

    def __init__(self, message: str, *, trouble: ConnectionTrouble) -> None:
        super().__init__(message, status=0)
        self.trouble = trouble

    @property
    def immediate(self) -> bool:
        """Whether the server's process is known to be gone (refused or closed), without waiting for more misses."""
        return self.trouble in (ConnectionTrouble.REFUSED, ConnectionTrouble.CLOSED)
