"""May a room be opened? What stands against it is a failed room with a typed reason, and never an exception."""

from __future__ import annotations

from collections.abc import Mapping

from kv_core.contract.config import MAX_ROOM
from kv_core.contract.enums import FailureCode, Role
from kv_core.protocol.rooms import Room


def objection(
    number: object, table: Mapping[int, Room], role: Role, max_rooms: int, *, closed: bool
) -> tuple[FailureCode, str] | None:
    """Why a room of this number can't be opened beside those in the table, or None."""
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_ROOM:
        text = f"bootstrap_room must be an int from 0 to 2**63-1, got {str(number)[:64]!r}"
        return FailureCode.INVALID_REQUEST, text
    if closed:
        return FailureCode.CLOSED, f"the {role.value} manager was closed"
    other = table.get(number)
    if other is not None:
        state = f"has ended ({other.phase.value}) but was not cleared: call clear()" if other.ended else "is live"
        return FailureCode.DUPLICATE_ROOM, f"room {number} is already open here and {state}"
    if len(table) >= max_rooms:
        text = f"{len(table)} rooms are open, TransferConfig.max_rooms allows no more: clear ended rooms"
        return FailureCode.OVERLOADED, text
    return None
