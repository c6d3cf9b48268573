"""What runs in a node that stands for an engine's process: a manager over the backend under test, and its rooms."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

from kv_conformance.nodes.memory import Memory, Shape
from kv_core import (
    BaseKVManager,
    BaseKVReceiver,
    BaseKVSender,
    BootstrapServer,
    Failure,
    KVPoll,
    KVTransferMetric,
    PeerEvent,
    Role,
    RoomEvent,
    TransferConfig,
    load_backend,
)

PAUSE_S = 0.0005


@dataclass(frozen=True)
class FaceOrder:
    """How a node with a manager is to be made. ``config``: arguments of ``TransferConfig``; ``args``: of ``KVArgs``.

    observed: whether to keep the events. bootstrap: whether to run a bootstrap server in the node, at this port (0: any).
    observer: makes one more observer, told before the one that keeps the events; a function at the top of a module of the
    suite, called with the ``FaceServer`` before there is a manager.
    """

    backend: str
    role: Role
    shape: Shape
    memory: tuple[int, int]
    config: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)
    observed: bool = False
    bootstrap: int | None = None
    observer: Callable[[FaceServer], object] | None = None


class Recorder:
    """An observer that keeps what it was told."""

    def __init__(self) -> None:
        self.rooms: list[RoomEvent] = []
        self.peers: list[PeerEvent] = []

    def kv_room_event(self, event: RoomEvent) -> None:
        """See the hook."""
        self.rooms.append(event)

    def kv_peer_event(self, event: PeerEvent) -> None:
        """See the hook."""
        self.peers.append(event)


@dataclass(frozen=True)
class Look:
    """One room as it was at one moment. ``now_s`` is the node's monotonic clock."""

    state: KVPoll
    failure: Failure | None
    metric: KVTransferMetric
    release_safe: bool
    now_s: float


class FaceServer:
    """A manager and its handles, by number."""

    def __init__(self, order: FaceOrder) -> None:
        self.order = order
        self.memory = Memory(order.shape, opened=order.memory)
        self.recorder = Recorder()
        self.server = None if order.bootstrap is None else BootstrapServer(host="127.0.0.1", port=order.bootstrap)
        self.observers: list[object] = [] if order.observer is None else [order.observer(self)]
        if order.observed:
            self.observers.append(self.recorder)
        self.handles: dict[int, BaseKVSender | BaseKVReceiver] = {}
        try:
            self.manager = self.create()
        except BaseException:
            if self.server is not None:
                self.server.close()
            raise

    def create(self, memory: Memory | None = None, **config: Any) -> BaseKVManager:
        """A manager as it was ordered; memory: over this one instead; config: what differs in ``TransferConfig``."""
        settings = {**self.order.config, **config}
        if self.server is not None:
            settings.setdefault("bootstrap_addr", self.server.address)
        args = (memory or self.memory).args(**self.order.args)
        return load_backend(self.order.backend).create_manager(
            self.order.role, args, TransferConfig(**settings), observers=self.observers
        )

    def reopen(self) -> None:
        """Put a new manager in the place of one that was closed, and forget the handles."""
        self.handles.clear()
        self.manager = self.create()

    def bootstrap_addr(self) -> str | None:
        """Address of this node's bootstrap server."""
        return None if self.server is None else self.server.address

    # -- rooms -----------------------------------------------------------------------------------------------------

    def open(self, addr: str, room: int) -> int:
        """Open a room; the handle's number."""
        create = self.manager.create_sender if self.order.role is Role.PREFILL else self.manager.create_receiver
        number = len(self.handles)
        self.handles[number] = create(addr, room)
        return number

    def do(self, number: int, method: str, *args: Any, **named: Any) -> Any:
        """Call a handle's method."""
        return getattr(self.handles[number], method)(*args, **named)

    def decode_prefix_len(self, number: int) -> int:
        """The sender's."""
        sender = self.handles[number]
        assert isinstance(sender, BaseKVSender)
        return sender.decode_prefix_len

    def look(self, number: int) -> Look:
        """Everything that a handle says, now."""
        handle = self.handles[number]
        return Look(
            handle.poll(), handle.failure(), handle.get_transfer_metric(), handle.is_release_safe(), monotonic()
        )

    def await_state(self, numbers: Sequence[int], states: Sequence[KVPoll], limit_s: float) -> list[Look]:
        """Poll until each of these handles is in one of these states, or has ended; how they are then, or at the limit."""
        deadline = monotonic() + limit_s
        over = (*states, KVPoll.Failed, KVPoll.Success)
        while monotonic() < deadline and not all(self.handles[n].poll() in over for n in numbers):
            sleep(PAUSE_S)
        return [self.look(number) for number in numbers]

    def await_safe(self, numbers: Sequence[int], limit_s: float) -> list[bool]:
        """Wait until the pages of all of these rooms may be used again; whether they may, each."""
        deadline = monotonic() + limit_s
        while monotonic() < deadline and not all(self.handles[n].is_release_safe() for n in numbers):
            sleep(PAUSE_S)
        return [self.handles[number].is_release_safe() for number in numbers]

    # -- the manager -----------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """The manager's."""
        return self.manager.snapshot()

    def health(self) -> dict[str, Any]:
        """The manager's."""
        return self.manager.health()

    def fabrics(self) -> list[str]:
        """The transports in use, as the snapshot has them."""
        found = self.manager.snapshot().get("fabrics", {})
        return sorted({str(value) for value in (found.values() if isinstance(found, Mapping) else found)})

    def events(self) -> tuple[list[RoomEvent], list[PeerEvent]]:
        """What the observer was told so far."""
        return list(self.recorder.rooms), list(self.recorder.peers)

    def close(self) -> None:
        """Close the manager, then the bootstrap server."""
        self.manager.close()
        if self.server is not None:
            self.server.close()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the suite in the node, with this object as its first argument."""
        return function(self, *args)

    def threads(self) -> list[str]:
        """Names of the threads that are alive."""
        return sorted(thread.name for thread in threading.enumerate())
