"""Polling inside of a node, on the thread that stands for the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic, sleep

from kv_conformance.nodes.face_server import FaceServer
from kv_conformance.nodes.memory import POISON
from kv_conformance.suite.playing import digest
from kv_core import KVPoll

PAUSE_S = 0.0002


def poll_many(server: FaceServer, numbers: Sequence[int], times: int) -> list[KVPoll]:
    """Poll each of these handles so many times, without a pause; what each said last."""
    handles = [server.handles[number] for number in numbers]
    said = [handle.poll() for handle in handles]
    for place, handle in enumerate(handles):
        for _ in range(times):
            said[place] = handle.poll()
    return said


def wrong_answers(server: FaceServer) -> list[str]:
    """Poll every handle that there is; what was no ``KVPoll``, or raised."""
    wrong = []
    for handle in server.handles.values():
        try:
            state = handle.poll()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is what the check is about
            wrong.append(f"room {handle.room}: poll() raised {type(error).__name__}: {error}")
        else:
            if type(state) is not KVPoll:
                wrong.append(f"room {handle.room}: poll() returned {state!r}, a {type(state).__name__}")
    return wrong


def watch(server: FaceServer, numbers: Sequence[int], seconds: float) -> list[list[KVPoll]]:
    """Poll these handles for a while; the states of each, as often as they changed."""
    handles = [server.handles[number] for number in numbers]
    seen = [[handle.poll()] for handle in handles]
    deadline = monotonic() + seconds
    while monotonic() < deadline:
        for states, handle in zip(seen, handles, strict=True):
            state = handle.poll()
            if state is not states[-1]:
                states.append(state)
        sleep(PAUSE_S)
    return seen


def pages_at_success(server: FaceServer, number: int, pages: Sequence[int], limit_s: float) -> tuple[KVPoll, str, int]:
    """Poll until the room has ended, and look at its pages at that very moment: its state, the pages' digest, and how many of
    their bytes were still poison.
    """
    handle, deadline = server.handles[number], monotonic() + limit_s
    while not (state := handle.poll()).terminal and monotonic() < deadline:
        sleep(PAUSE_S / 4)
    copies = [array[pages] for array in server.memory.kv]
    return state, digest(copies), sum(int((copy == POISON).sum()) for copy in copies)
