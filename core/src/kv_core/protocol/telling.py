"""What observers are told of a room: its state, its end, and what had happened to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kv_core.contract.moments import Moment
from kv_core.contract.records import RoomEvent, RoomEventKind
from kv_core.protocol.lifecycle import POLL
from kv_core.protocol.rooms import Room

if TYPE_CHECKING:
    from kv_core.protocol.identity import Identity


def room_event(me: Identity, room: Room, kind: RoomEventKind, now: float) -> RoomEvent:
    """The event of this kind. A room's history leaves it in two pieces: with its end, and with its release."""
    poll = room.poll if not room.ended else POLL[room.phase]
    concluded, released = kind is RoomEventKind.CONCLUDED, kind is RoomEventKind.RELEASED
    ended_at = room.ended_at if released else None
    history: tuple[Moment, ...] = ()
    if room.history is not None and (concluded or released):
        history = room.history.tell() if concluded else room.history.tell_rest()
    return RoomEvent(
        kind, me.backend, me.role, room.number, room.life, poll, now,
        room.metric if concluded else None, room.failure if concluded else None,
        None if ended_at is None else max(0.0, now - ended_at),
        history, me.instance_id, room.traceparent or room.peer_traceparent,
    )  # fmt: skip
