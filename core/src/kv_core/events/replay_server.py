"""The thread that answers replay requests.

The wire is SGLang's and vLLM's: a ROUTER socket takes ``[client, b"", start]`` and answers ``[client, b"", topic, seq,
payload]`` for each batch, then ``[client, b"", b"", ff*8, b""]``. A ROUTER drops what a slow reader has no room for, and
both engines then say "end" all the same (of a full ring of 10,000 batches 7 % were lost). Here the high-water mark
fits the ring, and what does not fit all the same waits until the reader has read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass

import zmq

from kv_core.events.answers import Answers
from kv_core.events.numbers import END_SEQ, from_frame, to_frame
from kv_core.events.troubles import Troubles

logger = logging.getLogger(__name__)

MAX_JOBS = 64
"""Answers on their way at once; more requests wait in the socket."""
STALLED_S = 60.0
"""A reader that takes nothing for so long is given up."""
RETRY_S = 0.02
"""How soon a reader without room is tried again."""
LOOK_UP_S = 1.0
SLICE = 256
"""Batches sent to one reader before the next one has its turn."""


@dataclass
class Job:
    """One answer on its way."""

    envelope: list[bytes]
    left: deque[tuple[bytes, bytes, bytes]]
    moved_at: float


class ReplayServer:
    """Owns the ROUTER socket from ``start`` on. Counters may be read by any thread."""

    def __init__(self, socket: zmq.Socket[bytes], answers: Answers, *, topic: bytes) -> None:
        self.requests = 0
        self.replayed = 0
        self.incomplete = 0
        self.abandoned = 0
        self.troubles = Troubles(logger)
        self._socket = socket
        self._answers = answers
        self._topic = topic
        self._jobs: deque[Job] = deque()
        self._moving = False
        self._stop = threading.Event()
        self._wake_reader, self._wake_writer = os.pipe()
        self._thread = threading.Thread(target=self._run, name="kv-events-replay")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End and join; answers on their way are cut off (a reader sees that: no end marker). True if the thread has ended."""
        if not self._stop.is_set():
            self._stop.set()
            with contextlib.suppress(OSError):  # closed already: the thread has ended by itself
                os.write(self._wake_writer, b"\0")
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_reader, zmq.POLLIN)
        poller.register(self._socket, zmq.POLLIN)
        try:
            while not self._stop.is_set():
                try:
                    poller.poll(int(self._wait_s() * 1000))
                    self._take_requests()
                    self._work()
                except Exception as error:  # noqa: BLE001 - a request must not end the replay of all others
                    self.troubles.add("a replay failed", error)
                    self._stop.wait(RETRY_S)
                if not threading.main_thread().is_alive():
                    break  # nobody is left who could call stop
        finally:
            self._socket.close(linger=1000)
            os.close(self._wake_reader)
            os.close(self._wake_writer)

    def _wait_s(self) -> float:
        if not self._jobs:
            return LOOK_UP_S
        return 0.0 if self._moving else RETRY_S

    def _take_requests(self) -> None:
        while len(self._jobs) < MAX_JOBS:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.requests += 1
            self._jobs.append(self._job(frames))

    def _job(self, frames: list[bytes]) -> Job:
        # A DEALER that forgot the empty delimiter is answered without one.
        envelope, end = frames[:-1], (b"", END_SEQ, b"")
        job = Job(envelope, deque([end]), time.monotonic())
        try:
            if len(frames) not in {2, 3} or any(envelope[1:]):
                raise ValueError(f"expected [client, b'', start], got {len(frames)} frames")
            answer = self._answers.to(from_frame(frames[-1]))
        except ValueError as error:
            self.troubles.add("a request was malformed and is answered with the end alone", error)
            job.envelope = frames[:1] + ([b""] if len(frames) > 2 else [])
            return job
        if answer.reason:
            self.incomplete += 1
        job.left = deque((self._topic, to_frame(seq), payload) for seq, payload in answer.batches)
        job.left.append(end)
        return job

    def _work(self) -> None:
        """A slice of each job; several answers to one reader stay in order, because a later one never overtakes."""
        blocked: set[bytes] = set()
        before = self.replayed
        for _ in range(len(self._jobs)):
            job = self._jobs.popleft()
            client = job.envelope[0]
            if client not in blocked and self._send_some(job):
                continue
            blocked.add(client)
            self._jobs.append(job)
        self._moving = self.replayed > before

    def _send_some(self, job: Job) -> bool:
        """Send what there is room for. True if the job is over."""
        for _ in range(SLICE):
            topic, seq, payload = job.left[0]
            try:
                self._socket.send_multipart([*job.envelope, topic, seq, payload], zmq.NOBLOCK)
            except zmq.Again:
                return self._stalled(job)
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self.abandoned += 1  # the reader has gone
                return True
            job.left.popleft()
            job.moved_at = time.monotonic()
            if not job.left:
                return True
            self.replayed += 1
        return False

    def _stalled(self, job: Job) -> bool:
        if time.monotonic() - job.moved_at < STALLED_S:
            return False
        self.abandoned += 1
        self.troubles.add("a reader took nothing for too long; its replay was given up")
        return True
