"""The thread that numbers batches, writes them down, keeps them for replay and sends them."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

import zmq

from kv_core.events.numbers import to_frame
from kv_core.events.profiles import WireProfile
from kv_core.events.queueing import NO_LOSS, DroppingQueue, Loss
from kv_core.events.ring import ReplayRing
from kv_core.events.schema import AllBlocksCleared, EventBatch, KVEventBatch
from kv_core.events.troubles import Troubles

logger = logging.getLogger(__name__)

LOOK_UP_S = 1.0
"""How often an idle sender looks whether the process's main thread has ended without ``shutdown``."""


class Sender:
    """Owns the PUB socket from ``start`` on. A number is given when a batch is ready to go, so numbers have no holes.

    What is lost before that (the queue was full, or a batch can't be written down) is said in the next batch, an
    ``AllBlocksCleared`` with ``reason="overflow"``: after a lost removal nobody knows which blocks are left, and a consumer
    that knows too little is slow where one that knows wrong is misled.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        batches: DroppingQueue,
        ring: ReplayRing,
        profile: WireProfile,
        *,
        topic: bytes,
        rank: int,
        first_seq: int,
        epoch: int,
        wall_clock: Callable[[], float],
    ) -> None:
        self.next_seq = first_seq
        self.published_events = 0
        self.unencodable = NO_LOSS
        self.troubles = Troubles(logger)
        self._socket = socket
        self._batches = batches
        self._ring = ring
        self._profile = profile
        self._topic = topic
        self._rank = rank
        self._epoch = epoch
        self._wall_clock = wall_clock
        self._told = NO_LOSS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kv-events-sender")

    @property
    def lost(self) -> Loss:
        """All that never got a number."""
        dropped, broken = self._batches.loss, self.unencodable
        return Loss(dropped.batches + broken.batches, dropped.events + broken.events)

    @property
    def running(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Send what waits, as far as `timeout_s` lets it, and join. True if everything was sent and the thread has ended."""
        self._batches.end()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._stop.set()
            self._thread.join(timeout_s)
        return not self._thread.is_alive() and len(self._batches) == 0

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                # The loss first: what was dropped until now is older than all that will be taken from here on.
                self._say_loss()
                batch = self._batches.get(LOOK_UP_S)
                if batch is None:
                    break
                self._publish(batch)
            except queue.Empty:
                if not threading.main_thread().is_alive():
                    break  # nobody is left who could call shutdown, and the process waits for this thread
            except zmq.ZMQError as error:
                self.troubles.add("the PUB socket refused a batch", error)
                self._stop.wait(0.1)  # it will refuse the next one, too
            except Exception as error:  # noqa: BLE001 - whatever an engine put into its events: the stream goes on
                self.troubles.add("a batch could not be sent", error)
        # What waits in the socket goes out in the background for this long; the context is not ours to end.
        self._socket.close(linger=1000)

    def _publish(self, batch: EventBatch) -> None:
        try:
            payload = self._profile.encode(batch)
        except Exception:
            before, count = self.unencodable, len(batch.events)
            self.unencodable = Loss(before.batches + 1, before.events + count)
            raise
        self._send(payload)
        self.published_events += len(batch.events)

    def _say_loss(self) -> None:
        lost = self.lost
        if lost == self._told:
            return
        new = lost.minus(self._told)
        event = AllBlocksCleared(reason="overflow", lost_batches=new.batches, lost_events=new.events, epoch=self._epoch)
        self._send(self._profile.encode(KVEventBatch(self._wall_clock(), [event], self._rank)))
        self._told = lost
        self.troubles.add("batches were lost before they could be sent; consumers are told to forget")

    def _send(self, payload: bytes) -> None:
        seq = self.next_seq
        # Kept before it is sent: who sees a gap behind it finds it in the ring.
        self._ring.append(seq, payload)
        self.next_seq = seq + 1
        # A PUB socket never blocks: a subscriber whose queue is full misses this batch and sees the gap.
        self._socket.send_multipart((self._topic, to_frame(seq), payload), zmq.NOBLOCK)


def unix_seconds() -> float:
    """The wall clock: ``ts`` of a batch is Unix time on the wire, and so is a life's first number."""
    return time.time_ns() / 1e9
