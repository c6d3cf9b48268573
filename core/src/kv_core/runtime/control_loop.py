"""The control thread: owns the ZeroMQ sockets, feeds packets and time to the machine, and performs its effects."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from kv_core.contract.failures import MessageError
from kv_core.protocol import effects as fx
from kv_core.protocol.messages import Codec
from kv_core.runtime.control import ConnectionLost, ConnectionRefused, ControlChannel, Frame, Incoming
from kv_core.runtime.outgoing import Outgoing
from kv_core.runtime.process_watch import ProcessWatch
from kv_core.runtime.runner import Runner

MAX_WAIT_S = 0.5
"""Longest sleep without a deadline: bounds how late a proof of death is found."""
SWEEP_S = 10.0
LOG_PERIOD_S = 10.0
NOT_UNDERSTOOD = "not_understood"
"""What frames that are no message are counted as."""


class ControlLoop:
    """Runs until ``close``. ``web`` performs Resolve, Watch and Unwatch (never blocking)."""

    def __init__(
        self, channel: ControlChannel, runner: Runner, codec: Codec,
        web: Callable[[fx.Resolve | fx.Watch | fx.Unwatch], None], on_proven_dead: Callable[[str], None],
        stalled_s: Callable[[], float],
        logger: logging.Logger, name: str,
    ) -> None:  # fmt: skip
        self._channel = channel
        self._runner = runner
        self._codec = codec
        self._web = web
        self._watch = ProcessWatch(on_proven_dead)
        self._stalled_s = stalled_s
        self._logger = logger
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)
        self._progress_s = monotonic()
        self._sweep_at = monotonic() + SWEEP_S
        self._log_at = 0.0
        self.exceptions = 0
        self.rejected_frames = 0
        self._outgoing = Outgoing(lambda effect: self._guarded(self._send, effect), codec.max_bytes)
        self._perform: dict[type, Callable[[Any], None]] = {
            fx.Disconnect: lambda effect: channel.disconnect(effect.endpoint),
            fx.Resolve: web, fx.Watch: web, fx.Unwatch: web,
            fx.ProveDeath: lambda effect: self._watch.add(effect.peer, effect.process),
        }  # fmt: skip

    def start(self) -> None:
        """Start the thread. The channel must be open; from now on only this thread uses it."""
        self._thread.start()

    def close(self, deadline_s: float) -> bool:
        """Perform what is queued, then end and close the channel; True if the thread has ended. Idempotent."""
        self._stop.set()
        self._channel.wake()
        if self._thread.ident is None:
            self._channel.close()  # no thread owns it
        elif self._thread is not threading.current_thread():
            self._thread.join(deadline_s)
        return not self._thread.is_alive()

    def snapshot(self) -> dict[str, Any]:
        """The channel's; frames that were no message are among what was dropped. Any thread."""
        found = self._channel.snapshot()
        return found | {"dropped": found["dropped"] | {NOT_UNDERSTOOD: self.rejected_frames}}

    def health(self) -> dict[str, object]:
        """See ``BaseKVManager.health``."""
        return {
            "alive": self._thread.is_alive(), "last_progress_age_s": monotonic() - self._progress_s,
            "exceptions": self.exceptions,
        }  # fmt: skip

    def _run(self) -> None:
        self._runner.control_thread = threading.get_ident()
        try:
            while not self._stop.is_set():
                self._guarded(self._turn)
            self._guarded(self._perform_queued)
        finally:
            self._channel.close()

    def _turn(self) -> None:
        self._progress_s = now = monotonic()
        deadline = self._runner.read(self._runner.machine.next_deadline)
        wait = MAX_WAIT_S if deadline is None else min(max(deadline - now, 0.0), MAX_WAIT_S)
        wait = 0.0 if not self._runner.control.empty() else self._watch.wait_s(now, wait)
        for incoming in self._channel.poll(wait):
            self._guarded(self._take, incoming)
        self._perform_queued()
        now = monotonic()
        deadline = self._runner.read(self._runner.machine.next_deadline)
        if deadline is not None and deadline <= now:
            self._runner.call(self._runner.machine.tick)
            self._perform_queued()
        self._watch.look(now)
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._channel.sweep(now)

    def _take(self, incoming: Incoming) -> None:
        machine = self._runner.machine
        if isinstance(incoming, Frame):
            try:
                packet = self._codec.decode(incoming.data)
            except MessageError as error:
                self.rejected_frames += 1
                self._complain("a frame was dropped", error)
                return
            machine.stalled_s = self._stalled_s()
            self._runner.call(machine.on_packet, packet)
        elif isinstance(incoming, ConnectionLost):
            self._runner.call(machine.on_connection_lost, incoming.endpoint)
        elif isinstance(incoming, ConnectionRefused):
            self._runner.call(machine.on_connection_refused, incoming.endpoint)

    def _perform_queued(self) -> None:
        # Bounded by what is there now: effects of effects wait for the next turn.
        for _ in range(self._runner.control.qsize()):
            effect = self._runner.control.get_nowait()
            if isinstance(effect, fx.SendPacket):
                self._outgoing.add(effect)
            else:
                self._outgoing.flush()
                self._guarded(self._perform[type(effect)], effect)
        self._outgoing.flush()

    def _send(self, effect: fx.SendPacket) -> None:
        self._channel.send(effect.endpoint, self._codec.encode(effect.packet))

    def _guarded(self, action: Callable[..., None], *args: Any) -> None:
        try:
            action(*args)
        except Exception as error:  # noqa: BLE001 - one bad message or effect must not end the control plane
            self.exceptions += 1
            self._complain("the control thread survived an exception", error)

    def _complain(self, text: str, error: Exception) -> None:
        now = monotonic()
        if now >= self._log_at:
            self._log_at = now + LOG_PERIOD_S
            self._logger.warning(
                "%s (%d exceptions, %d frames so far): %s", text, self.exceptions, self.rejected_frames, error,
                exc_info=None if isinstance(error, MessageError) else error,
            )  # fmt: skip
