"""One generation of a peer: where it is, and whether it may be posted to."""

from __future__ import annotations

import socket
import threading
import time

from kv_core import TransportError
from kv_core.contract.transport import PeerKey
from kv_mooncake.breaker import Breaker
from kv_mooncake.descriptor import Descriptor
from kv_mooncake.line import Line
from kv_mooncake.posting import Outcome

PROBE_S = 1.0


class Peer:
    """``admit`` belongs to the peer's posting thread, the rest to any."""

    def __init__(self, key: PeerKey, where: Descriptor, breaker: Breaker, line: Line) -> None:
        self.key = key
        self.where = where
        self.session = where.session()
        self.line = line
        self.removed = False  # set by the owner, read by the posting thread
        self._breaker = breaker
        self._lock = threading.Lock()  # of the breaker: batches end on another thread than they begin
        self._met = False
        self._last_error = ""

    def probe(self) -> bool:
        """Whether its engine answers now. Takes up to ``PROBE_S`` twice."""
        return _answers(self.where.host, self.where.port, PROBE_S)

    def admit(self) -> None:
        """Return if a batch may be posted now; raises ``TransportError`` (quiescent: nothing was posted) if not.

        The first contact is a probe too: the engine opens a session under a lock that all peers share, and a stopped
        peer would keep it for a minute.
        """
        if self.removed:
            raise TransportError(f"peer {self.key.name[:8]} is not known any more", quiescent=True)
        with self._lock:
            seconds, probe = self._breaker.refuses(time.monotonic()), self._breaker.open or not self._met
        if seconds:
            raise TransportError(
                f"peer {self.key.name[:8]} at {self.session} has failed {self._breaker.failures} times in a row and is not "
                f"tried for {seconds:.1f} s more (options failures_to_open, retry_after_s); the last time: {self._last_error}",
                quiescent=True,
            )
        if not probe:
            return
        if not self.probe():
            self.tell(Outcome(f"its engine did not answer within {PROBE_S:g} s"))
            text = f"the engine of peer {self.key.name[:8]} does not answer at {self.session}: it has ended, is stopped, or can't be reached"
            raise TransportError(text, quiescent=True)
        self._met = True

    def tell(self, outcome: Outcome) -> None:
        """How a batch or a probe went."""
        with self._lock:
            if outcome.error is None:
                self._breaker.succeeded()
            else:
                self._last_error = outcome.error
                self._breaker.failed(time.monotonic(), at_once=outcome.overran)


def _answers(host: str, port: int, timeout_s: float) -> bool:
    """Whether the engine at this address serves its RPC port now. Takes up to ``timeout_s``.

    The engine's own ``send_probe`` blocks for a minute if the peer is stopped. This ends our side of a connection and
    sees whether the engine ends its own: a stopped process's kernel accepts connections, but nobody closes them.
    """
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(1) == b""
    except (OSError, UnicodeError):  # the latter: no host name at all
        return False
