"""Fan-out of room and peer events to observers: bound once for a manager, and one that raises stops no other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from kv_core.contract.records import PeerEvent, RoomEvent, RoomEventKind

RoomObserver: TypeAlias = Callable[[RoomEvent], object]
PeerObserver: TypeAlias = Callable[[PeerEvent], object]

_F = TypeVar("_F", bound=Callable[..., object])
_KINDS = "room_kinds"
LOG_INTERVAL_S = 60.0
"""At most one log record per observer in this many seconds of the events' own time."""


def only(*kinds: RoomEventKind) -> Callable[[_F], _F]:
    """Marks a ``kv_room_event`` that has no use for events of other kinds. What no observer of a manager has a use for is
    not even queued, which spares the engine's thread waking another one; if another observer has, all are told.
    """

    def mark(function: _F) -> _F:
        setattr(function, _KINDS, kinds)
        return function

    return mark


@dataclass
class _Trouble:
    """What one observer did wrong so far, and when it was last logged."""

    count: int = 0
    unreported: int = 0
    logged_at_s: float | None = None


@dataclass
class Observers:
    """The observers of one manager, as plain callables. A hook call through pluggy would let one that raises stop the
    rest, and costs 40 times a method call; so the callables are collected once and called from here.

    ``if observers.room:`` tells whether it is worth building an event at all. ``tell_room`` and ``tell_peer`` never
    raise for an observer's sake, ignore what observers return, and are called from one thread (core's dispatcher).
    Failures are logged with their traceback, at most one record per observer in ``log_interval_s`` seconds by the
    events' ``time_s``, so that no clock is read here; ``errors`` counts all of them.
    """

    room: tuple[RoomObserver, ...] = ()
    peer: tuple[PeerObserver, ...] = ()
    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("kv_core.observers"))
    log_interval_s: float = LOG_INTERVAL_S
    _troubles: dict[int, _Trouble] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.room = tuple(self.room)
        self.peer = tuple(self.peer)

    @property
    def room_kinds(self) -> tuple[RoomEventKind, ...]:
        """The kinds of room events that at least one observer has a use for."""
        wanted = [getattr(observer, _KINDS, tuple(RoomEventKind)) for observer in self.room]
        return tuple(kind for kind in RoomEventKind if any(kind in kinds for kinds in wanted))

    @property
    def errors(self) -> int:
        """How many calls of observers have raised so far."""
        return sum(trouble.count for trouble in self._troubles.values())

    def tell_room(self, event: RoomEvent) -> None:
        """Call every room observer, in order."""
        for observer in self.room:
            self._tell(observer, event)

    def tell_peer(self, event: PeerEvent) -> None:
        """Call every peer observer, in order."""
        for observer in self.peer:
            self._tell(observer, event)

    def _tell(self, observer: Callable[[Any], object], event: RoomEvent | PeerEvent) -> None:
        try:
            observer(event)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a SystemExit or CancelledError must not end the dispatcher either
            self._note(observer, event.time_s, error)

    def _note(self, observer: Callable[[Any], object], time_s: float, error: BaseException) -> None:
        trouble = self._troubles.setdefault(id(observer), _Trouble())
        trouble.count += 1
        if trouble.logged_at_s is not None and time_s - trouble.logged_at_s < self.log_interval_s:
            trouble.unreported += 1
            return
        self.logger.warning(
            "observer %s raised %s: %s (%d more since it was last logged); the other observers were told",
            observer_name(observer),
            type(error).__name__,
            error,
            trouble.unreported,
            exc_info=error,
        )
        trouble.logged_at_s = time_s
        trouble.unreported = 0


def observer_name(observer: Callable[..., object]) -> str:
    """Module and qualified name of an observer, for the log."""
    name = getattr(observer, "__qualname__", type(observer).__qualname__)
    return f"{getattr(observer, '__module__', None) or '?'}.{name}"
