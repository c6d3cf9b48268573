"""Rooms that are opened, handed over and ended by command, while the engine's loop runs others in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from time import monotonic

import numpy as np

from kv_core import KVPoll
from kv_core.contract.interfaces import BaseKVManager, BaseKVReceiver, BaseKVSender

LIMIT_S = 60.0
PASS_S = 0.005


class HeldRooms:
    """One side's end of them. Every room takes the first pages of the pool."""

    def __init__(self, manager: BaseKVManager, addr: str, *, source: bool) -> None:
        self._manager = manager
        self._addr = addr
        self._source = source
        self._pages = np.arange(0)
        self._handles: list[BaseKVSender | BaseKVReceiver] = []

    def open(self, rooms: list[int], pages: int) -> None:
        """Open rooms; the decode side names its pages at once."""
        self._pages = np.arange(pages)
        for room in rooms:
            if self._source:
                sender = self._manager.create_sender(self._addr, room)
                sender.init(pages)
                self._handles.append(sender)
            else:
                receiver = self._manager.create_receiver(self._addr, room)
                receiver.init()
                receiver.send_metadata(self._pages)
                self._handles.append(receiver)

    def ready(self) -> None:
        """Return when the other side has named its pages for every room (prefill)."""
        self._until(lambda: all(handle.poll() is not KVPoll.Bootstrapping for handle in self._handles), "to be ready")

    def send(self) -> None:
        """Hand over the pages of every room (prefill)."""
        for handle in self._handles:
            assert isinstance(handle, BaseKVSender), "the prefill side sends"
            handle.send(self._pages)

    def live(self) -> int:
        """How many have not ended."""
        return sum(not handle.poll().terminal for handle in self._handles)

    def finish(self) -> int:
        """Wait for the end of all; how many went well."""
        self._until(lambda: not self.live(), "to end")
        good = sum(handle.poll() is KVPoll.Success for handle in self._handles)
        for handle in self._handles:
            handle.clear()
        self._handles = []
        return good

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        end = monotonic() + LIMIT_S
        while not condition():
            if monotonic() > end:
                states = ", ".join(f"{handle.room}: {handle.poll().name}" for handle in self._handles)
                raise TimeoutError(f"rooms took longer than {LIMIT_S:.0f} s {what}: {states}")
            time.sleep(PASS_S)
