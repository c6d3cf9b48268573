"""The one lock: runs the machine's decisions and hands its effects, in their order, to those who perform them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic
from typing import Any, Protocol, TypeVar

from kv_core.contract.records import PeerEvent, RoomEvent
from kv_core.protocol.effects import (
    AddPeer,
    Effect,
    FencePeer,
    RemovePeer,
    SubmitChunk,
    TellPeer,
    TellRoom,
    VerifyDigests,
)
from kv_core.protocol.machine import Machine

T = TypeVar("T")

TRANSFER_EFFECTS = (SubmitChunk, AddPeer, RemovePeer, FencePeer, VerifyDigests)


class EffectQueue(Protocol):
    """Takes effects from any thread without blocking."""

    def put(self, effect: Any) -> None:
        """Queue the effect."""
        ...


class Runner:
    """Calls a machine under the lock; performs nothing itself.

    Effects for the control thread go into ``control``, and events to ``tell``, while the lock is held (neither ever
    blocks), so that they are performed in the order in which they were decided; the wake-up and the transfer queues
    come after the lock. A decision that has nothing for the control thread does not wake it.
    """

    def __init__(
        self, machine: Machine, wake_control: Callable[[], None], tell: Callable[[RoomEvent | PeerEvent], None]
    ) -> None:
        self.machine = machine
        self.control: SimpleQueue[Effect] = SimpleQueue()
        self.control_thread = 0  # its id: it looks into the queue by itself after each decision
        self.transfers: EffectQueue | None = None
        self._wake_control = wake_control
        self._tell = tell
        self._lock = threading.Lock()

    def call(self, decide: Callable[..., list[Effect]], *args: Any) -> None:
        """``decide(*args, now)``, then see to its effects. Any thread."""
        with self._lock:
            wake, later = self._route(decide(*args, monotonic()))
        self._after(wake, later)

    def ask(self, decide: Callable[..., tuple[T, list[Effect]]], *args: Any) -> T:
        """Like ``call``, for a decision that also answers something."""
        with self._lock:
            answer, effects = decide(*args, monotonic())
            wake, later = self._route(effects)
        self._after(wake, later)
        return answer

    def read(self, look: Callable[[], T]) -> T:
        """Look at the machine under the lock."""
        with self._lock:
            return look()

    def _route(self, effects: list[Effect]) -> tuple[bool, list[Effect]]:
        """(whether the control thread has something to do, what goes to the transfer engine)."""
        wake = False
        later: list[Effect] = []
        for effect in effects:
            if isinstance(effect, TellRoom | TellPeer):
                self._tell(effect.event)
            elif isinstance(effect, TRANSFER_EFFECTS):
                later.append(effect)
            else:
                self.control.put(effect)
                wake = True
        return wake, later

    def _after(self, wake: bool, later: list[Effect]) -> None:
        if later and self.transfers is not None:
            for effect in later:
                self.transfers.put(effect)
        if wake and threading.get_ident() != self.control_thread:
            self._wake_control()
