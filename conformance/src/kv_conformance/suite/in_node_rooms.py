"""What the checks of rooms do inside of a node: what has to happen right after a call, or with objects that can't be sent."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

import numpy as np

from kv_conformance.nodes.face_server import FaceServer
from kv_core import BaseKVReceiver, BaseKVSender


class Gate:
    """Has the manners of a CUDA event: complete once it was opened."""

    def __init__(self) -> None:
        self.asked = 0
        self.opened = False

    def query(self) -> bool:
        """Whether it is open."""
        self.asked += 1
        return self.opened


_gates: dict[int, Gate] = {}
"""By room handle."""


def send_gated(server: FaceServer, number: int, pages: Sequence[int]) -> None:
    """Send a chunk whose source is not ready yet."""
    gate = _gates[number] = Gate()
    _sender(server, number).send(np.array(pages, np.uint64), ready=gate)


def times_asked(_server: FaceServer, number: int) -> int:
    """How often it was asked whether the source is ready."""
    return _gates[number].asked


def open_gate(_server: FaceServer, number: int) -> None:
    """Now the source is ready."""
    _gates[number].opened = True


def send_and_spoil(server: FaceServer, number: int, pages: Sequence[int]) -> None:
    """Send a chunk, and use the array of its pages for something else."""
    array = np.array(pages, np.uint64)
    _sender(server, number).send(array)
    array[:] = 0


def name_and_spoil(server: FaceServer, number: int, pages: Sequence[int]) -> None:
    """Open decode's side, name its pages, and use their array for something else."""
    receiver = server.handles[number]
    assert isinstance(receiver, BaseKVReceiver)
    receiver.init()
    array = np.array(pages, np.uint64)
    receiver.send_metadata(array)
    array[:] = 0


def send_and_reuse(server: FaceServer, number: int, pages: Sequence[int], limit_s: float) -> bool:
    """Send a chunk, and overwrite its pages as soon as they may be used again; whether they might in time."""
    sender = _sender(server, number)
    places = np.array(pages, np.intp)
    sender.send(places)
    deadline = monotonic() + limit_s
    while not sender.is_release_safe():
        if monotonic() > deadline:
            return False
    for buffer in server.memory.kv:
        buffer[places] = 0
    return True


def _sender(server: FaceServer, number: int) -> BaseKVSender:
    sender = server.handles[number]
    assert isinstance(sender, BaseKVSender)
    return sender
