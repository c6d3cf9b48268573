"""What the checks of aborting and draining do inside of a node: at the very moment, and not a message later."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic, sleep

from kv_conformance.nodes.face_server import FaceServer
from kv_conformance.nodes.wire_server import WireServer

PAUSE_S = 0.0002


def take_over(
    server: FaceServer, number: int, pages: Sequence[int], value: int, strange: int, limit_s: float,
    abort_after: float | None = None,
) -> int:  # fmt: skip
    """Be the next owner of a room's pages: wait until they may be used again, and fill them with ``value`` at once.

    abort_after: abort the room first, after so many seconds. Returns how many bytes were ``strange`` when they were taken over;
    -1 if they were never given back.
    """
    handle = server.handles[number]
    if abort_after is not None:
        sleep(abort_after)
        handle.abort("the client hung up (conformance)")
    deadline = monotonic() + limit_s
    while not handle.is_release_safe():
        if monotonic() > deadline:
            return -1
        sleep(PAUSE_S)
    found = []
    for array in server.memory.kv:
        found.append(array[pages])
        array[pages] = value
    return sum(int((bytes_ == strange).sum()) for bytes_ in found)


def fence_and_take_over(server: WireServer, name: str, generation: int) -> None:
    """Fence a peer off and poison all memory at once: what lands from now on is seen."""
    server.fence(name, generation)
    server.memory.poison()
