"""How rooms end that do not go well: given up by an engine, lost with a process; and what is left of them then."""

from __future__ import annotations

from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import FaceNode, Room
from kv_conformance.outcomes import Untestable
from kv_core import FailureCode, Role, Side

REASON = "the client hung up (conformance)"
"""What an engine says when it gives a room up."""


def give_up(room: Room) -> None:
    """Abort a room that is under way. Raises ``Untestable`` if it had ended before."""
    room.abort(REASON)
    if room.failed().code is not FailureCode.ABORTED_LOCAL:
        raise Untestable(f"the room had ended before it could be aborted: {room.failure()}")


def given_up(by: Room, other: Room, reason: str = REASON) -> None:
    """Both sides must have failed: with code aborted_local where it was given up, aborted_remote at the other one."""
    for room, code in ((by, FailureCode.ABORTED_LOCAL), (other, FailureCode.ABORTED_REMOTE)):
        failure = room.failed()
        assert failure.code is code, (
            f"room {room.room} at {room.node.process.name}: expected code {code.value}, seen {failure}"
        )
        assert reason in failure.message, (
            f"room {room.room} at {room.node.process.name}: the reason {reason!r} is not in the failure's message: {failure}"
        )


def lost(room: Room, role: Role, *, in_flight: bool = False) -> None:
    """The room must have failed because the process of this role is gone."""
    failure, where = room.failed(), f"room {room.room} at {room.node.process.name}"
    codes = {FailureCode.PEER_LOST} | ({FailureCode.TRANSPORT_ERROR} if in_flight else set())
    assert failure.code in codes, f"{where}: expected {' or '.join(code.value for code in codes)}, seen {failure}"
    sides = {Side.of(role)} | ({Side.FABRIC} if failure.code is FailureCode.TRANSPORT_ERROR else set())
    assert failure.side in sides, f"{where}: expected side {role.value}, seen {failure.side.value}: {failure}"
    assert failure.message, f"{where} failed without a sentence: {failure!r}"
    assert failure.retryable, f"{where}: a retry with another peer can help, and the failure says it can't: {failure}"


def at_rest(env: Env, node: FaceNode) -> None:
    """Nothing of the lost peer may be left in the snapshot once its rooms are cleared."""
    env.wait_until(lambda: not node.snapshot()["quarantined"], f"an empty quarantine at {node.process.name}")
    env.wait_until(lambda: not node.unrest(), f"{node.process.name} at rest, but for {node.unrest()}")
