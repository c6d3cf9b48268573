"""The owner thread: the only one that calls the transport (``wake`` and, for ``BLOCKING`` ones, ``submit`` excepted)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeAlias

from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import Capability, Direction, ThreadingModel
from kv_core.contract.transport import Transport
from kv_core.layout import MemoryLayout
from kv_core.protocol.chunks import TransferKVChunk
from kv_core.protocol.effects import AddPeer, FencePeer, RemovePeer, VerifyDigests
from kv_core.runtime.fabric_rule import FabricRule
from kv_core.runtime.transfer.aux import AuxDataCodec
from kv_core.runtime.transfer.blocking import ThreadedPoster
from kv_core.runtime.transfer.commands import Commands
from kv_core.runtime.transfer.deaths import Deaths, IsDead
from kv_core.runtime.transfer.digest import Hasher
from kv_core.runtime.transfer.dispatch import Dispatcher
from kv_core.runtime.transfer.memory import HostMemory
from kv_core.runtime.transfer.outstanding import Outstanding
from kv_core.runtime.transfer.parking import Parking
from kv_core.runtime.transfer.poster import DirectPoster, Poster
from kv_core.runtime.transfer.reports import Reports
from kv_core.runtime.transfer.shards import Shards
from kv_core.runtime.transfer.sink import TransferSink
from kv_core.runtime.transfer.staging import Staging
from kv_core.runtime.transfer.troubles import SURVIVED, Troubles

Command: TypeAlias = AddPeer | RemovePeer | FencePeer | VerifyDigests

INTAKE = 512
"""Chunks taken from the queues in one turn."""
COMMANDS_S = 0.005
"""Commands are performed for so long at most before the transfers have their turn."""
IDLE_WAIT_S = 1.0
ACTIVE_WAIT_S = 0.25
"""Longest wait while something is outstanding: a transport's own events come sooner."""
SWEEP_S = 0.5
CANCEL_SWEEP_S = 0.05
RECOVER_S = 0.05
"""Pause after a turn, or a wait, that raised: an error that comes at once each time must not eat a core."""


class Owner:
    """State and loop of the owner thread. ``run`` is the thread's body; everything public else may be used by any."""

    def __init__(
        self, transport: Transport, layout: MemoryLayout, config: TransferConfig, sink: TransferSink,
        clock: Callable[[], float], logger: logging.Logger, capabilities: frozenset[Capability],
        shards: Shards, is_dead: IsDead, direction: Direction, *, moves: bool,
    ) -> None:  # fmt: skip
        self.commands: SimpleQueue[Command] = SimpleQueue()
        self.shards = shards
        self.troubles = Troubles(logger, clock)
        self.quiescent = False  # valid once the thread has ended
        self.turned_at = clock()
        self._transport = transport
        self._layout = layout
        self._clock = clock
        self._can_cancel = Capability.CANCEL in capabilities
        self._stop = threading.Event()
        self._pause = threading.Event()  # never set: something to wait on where the transport's wait fails
        self._close_by = 0.0
        self._asleep = False
        self._due = clock()  # when the next sign of life is to be expected
        self._sweep_at = self._cancel_sweep_at = 0.0
        memory = HostMemory(layout.regions())
        reports = Reports(sink, self.troubles)
        hasher, codec = Hasher(memory), AuxDataCodec(layout, memory)
        reads = direction is Direction.READ
        self.staging = Staging(
            transport, self.troubles, config.staging_bytes if moves else 0, len(layout.regions())
        )  # fmt: skip
        self.dispatcher = Dispatcher(
            config, capabilities, clock, shards, reports, self.troubles, hasher, codec, moves=moves, reads=reads,
        )  # fmt: skip
        self.outstanding = Outstanding(transport, self.troubles, clock, self.dispatcher)
        self.poster: Poster
        if transport.threading is ThreadingModel.BLOCKING:
            self.poster = ThreadedPoster(
                transport, clock, self.dispatcher, self.wake, max_threads=config.max_peers,
                limit_s=config.transferring_timeout_s,
            )  # fmt: skip
        else:
            self.poster = DirectPoster(transport, clock, self.dispatcher)
        self.dispatcher.connect(self.poster, self.outstanding)
        self._deaths = Deaths(self.outstanding, is_dead, clock, reads=reads)
        self.parking = Parking(clock, self.dispatcher, self.troubles)
        self._perform = Commands(
            transport, self.dispatcher, reports, self.troubles, hasher, codec, FabricRule(config.require_transport),
            self.staging, config.max_indices,
        ).perform  # fmt: skip

    # -- any thread ------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """See to it that what was queued before this call is noticed. Never blocks; costs nothing while it is awake."""
        if self._asleep:
            self._asleep = False
            self._interrupt()

    def stop(self, close_by: float) -> None:
        """Let the thread end: everything posted has until ``close_by`` (on the clock) to become quiescent."""
        self._close_by = close_by
        self._stop.set()
        self._interrupt()

    def stalled_s(self) -> float:
        """See ``TransferEngine.stalled_s``."""
        due = self._due
        if self._asleep and not self._has_work():
            return 0.0
        return max(0.0, self._clock() - due)

    def _has_work(self) -> bool:
        return bool(
            self.dispatcher.active or self.parking.count or self.outstanding.count or not self.commands.empty()
            or not self.shards.empty or self.poster.pending()
        )  # fmt: skip

    def _interrupt(self) -> None:
        try:
            self._transport.wake()
        except SURVIVED as error:
            self.troubles.add("wake() failed", error)

    # -- the thread ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until told to stop, then close everything."""
        while not self._stop.is_set():
            try:
                self._turn()
                self._rest(self._wait_s())
            except SURVIVED as error:
                self.troubles.add("a turn of the owner failed", error)
                self._pause.wait(RECOVER_S)
            if not threading.main_thread().is_alive():
                self.stop(self._clock())  # nobody is left who could close it, and the process waits for its threads
        self._finish()

    def _turn(self) -> None:
        self._due = self.turned_at = self._clock()
        self._run_commands()
        for chunk in self.shards.take(INTAKE):
            self._take(chunk)
        self.parking.turn()
        self.poster.turn()
        self.dispatcher.post()
        self.outstanding.progress()
        self._deaths.look()
        now = self._clock()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self.dispatcher.sweep()
        elif self._can_cancel and now >= self._cancel_sweep_at:
            self._cancel_sweep_at = now + CANCEL_SWEEP_S
            self.dispatcher.sweep_jobs()

    def _take(self, chunk: TransferKVChunk) -> None:
        if chunk.ready is None:
            self.dispatcher.enqueue(chunk)
        else:
            self.parking.add(chunk)

    def _run_commands(self) -> None:
        until = self._clock() + COMMANDS_S
        while True:
            try:
                command = self.commands.get_nowait()
            except Empty:
                return
            self._perform(command)
            if self._clock() >= until:
                return

    def _wait_s(self) -> float:
        """How long nothing needs to be done, if nothing happens."""
        if self.dispatcher.runnable:
            return 0.0
        now = self._clock()
        limit = IDLE_WAIT_S
        if self.outstanding.count or self.poster.busy():
            limit = min(ACTIVE_WAIT_S, CANCEL_SWEEP_S) if self._can_cancel else ACTIVE_WAIT_S
        elif self.dispatcher.active or any(self.shards.counts()):
            limit = SWEEP_S
        for when in (self.parking.next_check, self.outstanding.next_retry):
            if when is not None:
                limit = min(limit, max(0.0, when - now))
        return limit

    def _rest(self, seconds: float) -> None:
        if seconds <= 0.0:
            return
        self._asleep = True  # before the queues are looked at: whoever puts after that look sees it, and wakes
        if self.commands.empty() and self.shards.empty and not self.poster.pending():
            self._due = self._clock() + seconds
            try:
                self._transport.wait(seconds)
            except SURVIVED as error:
                self.troubles.add("wait() failed", error)
                self._pause.wait(min(seconds, RECOVER_S))
        self._asleep = False

    # -- the end ---------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        dispatcher = self.dispatcher
        self._guard("closing failed", self._refuse_all)
        while (self.outstanding.count or self.poster.busy()) and self._clock() < self._close_by:
            self._due = self.turned_at = self._clock()
            self._guard("driving the last transfers failed", self._drive_last)
        ended = self.poster.close(self._close_by)
        self._guard("the last answers failed", self._drive)
        self.quiescent = ended and not (self.outstanding.count or self.poster.busy() or dispatcher.lost)
        self._guard("reporting the end failed", dispatcher.give_up)
        self.outstanding.drop_all()
        if self.quiescent:
            regions = (*self._layout.regions(), *self.staging.regions)
            self._guard("deregister_memory() failed", lambda: self._transport.deregister_memory(regions))
        self._guard("the transport's close() failed", self._transport.close)
        self.staging.close(quiescent=self.quiescent)

    def _refuse_all(self) -> None:
        self.dispatcher.close("the transfer engine was closed")
        self._run_commands()
        while chunks := self.shards.take(INTAKE):
            for chunk in chunks:
                self.dispatcher.enqueue(chunk)
        self.parking.release_all()
        self.dispatcher.close("the transfer engine was closed")

    def _drive(self) -> None:
        self.poster.turn()
        self.outstanding.progress()
        self._deaths.look()

    def _drive_last(self) -> None:
        self._run_commands()
        self._drive()
        if self.outstanding.count or self.poster.busy():
            self._rest(min(ACTIVE_WAIT_S, self._close_by - self._clock()))

    def _guard(self, what: str, action: Callable[[], object]) -> None:
        try:
            action()
        except SURVIVED as error:
            self.troubles.add(what, error)
