"""One direction-pair of messages between two processes, exactly once and in order, over a carrier that may lose,
double and reorder packets.

ZeroMQ over TCP does that by itself until a connection breaks; what was in flight then is lost or, on a reconnect, comes
late. Rooms must not depend on that: an abort that overtakes its metadata would let a write loose on reused pages. So
messages are numbered and acknowledged (cumulatively, as TCP does), and everything above may rely on FIFO order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from kv_core.protocol.messages import Message, weight

ACK_DELAY_S = 0.1
"""How long an acknowledgement waits for a packet to ride on."""
RETRY_S = 0.5
"""First retransmission; doubles up to MAX_RETRY_S."""
MAX_RETRY_S = 4.0
MAX_UNACKED = 131_072
"""Messages a peer may leave unacknowledged before the link counts as lost."""
MAX_EARLY = 4_096
"""Messages that may wait for an earlier one."""
BURST = 512
"""Messages in one packet."""
BURST_BYTES = 1024 * 1024
"""Bytes of messages in one packet; a longer message goes alone."""


class ReliableLink:
    """Numbers, acknowledges, retransmits and reorders. Time is monotonic seconds; no method does I/O."""

    def __init__(self, burst_bytes: int = BURST_BYTES) -> None:
        self._burst_bytes = burst_bytes
        self._next_seq = 1
        self._unacked: deque[tuple[int, Message]] = deque()
        self._unsent = 0  # how many of the newest unacked ones have never been sent
        self._received = 0
        self._early: dict[int, Message] = {}
        self._ack_due: float | None = None
        self._retry_at: float | None = None
        self._retry_s = RETRY_S
        self.duplicates = 0
        self.overflowed = False

    @property
    def ack(self) -> int:
        """Number of the last message received in order."""
        return self._received

    @property
    def unacknowledged(self) -> int:
        """Messages that the peer has not acknowledged yet."""
        return len(self._unacked)

    def push(self, message: Message) -> None:
        """Queue a message for the next ``flush``."""
        if len(self._unacked) >= MAX_UNACKED:
            self.overflowed = True
            return
        self._unacked.append((self._next_seq, message))
        self._next_seq += 1
        self._unsent += 1

    def flush(self, now: float) -> list[tuple[int, list[Message]]]:
        """(number of the first, messages) of what has not been sent yet, in packets of at most BURST messages."""
        if not self._unsent:
            return []
        fresh = [self._unacked[i] for i in range(len(self._unacked) - self._unsent, len(self._unacked))]
        self._unsent = 0
        self._ack_due = None
        if self._retry_at is None:
            self._retry_at = now + self._retry_s
        return self._bursts(fresh)

    def on_ack(self, ack: int, now: float) -> None:
        """The peer has everything up to ``ack``."""
        moved = False
        while self._unacked and self._unacked[0][0] <= ack and len(self._unacked) > self._unsent:
            self._unacked.popleft()
            moved = True
        if moved:
            self._retry_s = RETRY_S
            self._retry_at = now + self._retry_s if len(self._unacked) > self._unsent else None

    def on_data(self, seq: int, messages: Sequence[Message], now: float) -> list[Message]:
        """Take a packet's messages; returns those that are now due, in order."""
        for offset, message in enumerate(messages):
            number = seq + offset
            if number <= self._received or number in self._early:
                self.duplicates += 1
            elif number <= self._received + MAX_EARLY:
                self._early[number] = message
        if messages and self._ack_due is None:  # a bare acknowledgement is not acknowledged: that would never end
            self._ack_due = now + ACK_DELAY_S
        due = []
        while self._received + 1 in self._early:
            self._received += 1
            due.append(self._early.pop(self._received))
        return due

    def next_deadline(self) -> float | None:
        """When ``tick`` has something to do."""
        times = [t for t in (self._ack_due, self._retry_at) if t is not None]
        return min(times) if times else None

    def tick(self, now: float) -> tuple[bool, list[tuple[int, list[Message]]]]:
        """(whether a bare acknowledgement is due, packets to send again)."""
        ack_now = self._ack_due is not None and now >= self._ack_due
        if ack_now:
            self._ack_due = None
        if self._retry_at is None or now < self._retry_at:
            return ack_now, []
        sent = len(self._unacked) - self._unsent
        again = [self._unacked[i] for i in range(min(sent, BURST))]
        self._retry_s = min(self._retry_s * 2, MAX_RETRY_S)
        self._retry_at = now + self._retry_s if sent else None
        return ack_now, self._bursts(again)

    def _bursts(self, numbered: list[tuple[int, Message]]) -> list[tuple[int, list[Message]]]:
        packets: list[tuple[int, list[Message]]] = []
        room = 0
        for number, message in numbered:
            size = weight(message)
            if not packets or size > room or len(packets[-1][1]) >= BURST:
                packets.append((number, []))
                room = self._burst_bytes
            packets[-1][1].append(message)
            room -= size
        return packets
