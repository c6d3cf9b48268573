"""Joins data packets that wait for the same peer: one frame instead of one for each decision.

Every decision makes its own packet, and an engine makes several in a row (a room is opened and its pages are named; a
pass of the scheduler does that for many rooms). By the time the control thread comes round they lie in its queue one
behind the other. A packet costs both sides far more than a message in it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from kv_core.protocol.effects import SendPacket
from kv_core.protocol.link import BURST, BURST_BYTES
from kv_core.protocol.messages import MAX_HEADER, Data, Message, weight


@dataclass
class _Waiting:
    """A packet that others may join. ``joined``: messages of those that did."""

    first: SendPacket
    nbytes: int
    joined: list[Message] = field(default_factory=list)
    ack: int = 0


class Outgoing:
    """Packets of one round, in order for each endpoint. ``send`` is told of each packet to be sent. One thread."""

    def __init__(self, send: Callable[[SendPacket], None], max_bytes: int) -> None:
        self._send = send
        self._max_bytes = min(BURST_BYTES, (max_bytes - MAX_HEADER) // 2)
        self._waiting: dict[str, _Waiting] = {}

    def add(self, effect: SendPacket) -> None:
        """Take a packet; it goes out at the next ``flush`` at the latest."""
        waiting = self._waiting.get(effect.endpoint)
        if waiting is not None:
            if self._join(waiting, effect.packet):
                return
            del self._waiting[effect.endpoint]
            self._send_off(waiting)
        packet = effect.packet
        if isinstance(packet, Data):
            self._waiting[effect.endpoint] = _Waiting(effect, sum(map(weight, packet.messages)), ack=packet.ack)
        else:
            self._send(effect)

    def flush(self) -> None:
        """Send everything."""
        while self._waiting:
            _, waiting = self._waiting.popitem()
            self._send_off(waiting)

    def _join(self, waiting: _Waiting, packet: object) -> bool:
        first = waiting.first.packet
        if not isinstance(packet, Data) or not isinstance(first, Data):
            return False
        if (packet.session, packet.receiver) != (first.session, first.receiver):
            return False
        if packet.messages:
            count = len(first.messages) + len(waiting.joined)
            nbytes = waiting.nbytes + sum(map(weight, packet.messages))
            if not first.messages or packet.seq != first.seq + count:
                return False  # an acknowledgement alone, something sent again
            if count + len(packet.messages) > BURST or nbytes > self._max_bytes:
                return False
            waiting.joined += packet.messages
            waiting.nbytes = nbytes
        waiting.ack = max(waiting.ack, packet.ack)
        return True

    def _send_off(self, waiting: _Waiting) -> None:
        first = waiting.first
        packet = first.packet
        if isinstance(packet, Data) and (waiting.joined or waiting.ack != packet.ack):
            messages = [*packet.messages, *waiting.joined]
            packet = msgspec.structs.replace(packet, messages=messages, ack=waiting.ack)
            first = SendPacket(first.endpoint, packet)
        self._send(first)
