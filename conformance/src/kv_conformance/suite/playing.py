"""Rooms that are played inside of the nodes, in one thread and without a message in between: as an engine's loop does it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from hashlib import blake2b
from time import monotonic, sleep

import numpy as np
import numpy.typing as npt

from kv_conformance.nodes.face import Pair
from kv_conformance.nodes.face_server import FaceServer
from kv_conformance.nodes.memory import POISON, U8, Image
from kv_core import BaseKVSender, Failure, KVPoll, KVTransferMetric, Role
from kv_core.contract.interfaces import BaseKVHandle

PAUSE_S = 0.00005
CROWD_PAUSE_S = 0.001
Pages = npt.NDArray[np.intp]


class Abort(str, Enum):
    """When a side gives its room up."""

    NEVER = "never"
    OPENED = "opened"
    WAITING = "waiting"
    LANDED = "landed"
    """Decode: as soon as the last byte is in its memory, whether or not anybody has said so."""


@dataclass(frozen=True)
class Part:
    """What one side does in a room. ``pages``: its own. ``chunks``: how many a sender makes of them."""

    room: int
    pages: Pages
    chunks: int = 1
    abort: Abort = Abort.NEVER


@dataclass
class Story:
    """What one side saw of a room: its states and its metrics, each as often as it changed, and how it ended.

    digest: of the pages as they were at the very moment when ``poll()`` first said Success. poison: how many bytes of them
    were still poison. Times are of the monotonic clock.
    """

    room: int
    states: list[KVPoll] = field(default_factory=list)
    metrics: list[KVTransferMetric] = field(default_factory=list)
    failure: Failure | None = None
    digest: str = ""
    poison: int = 0
    polls: int = 0
    began_s: float = 0.0
    ended_s: float = 0.0

    @property
    def end(self) -> KVPoll:
        """The last state."""
        return self.states[-1]

    def words(self) -> str:
        """The states, for a message."""
        return " -> ".join(state.name for state in self.states) + (f" ({self.failure})" if self.failure else "")


class _Player:
    """One side of one room."""

    def __init__(self, server: FaceServer, addr: str, part: Part) -> None:
        self.part = part
        self.memory = server.memory
        self.story = Story(part.room, began_s=monotonic())
        self.copies: list[U8] = []
        if server.order.role is Role.PREFILL:
            self.sender: BaseKVSender | None = server.manager.create_sender(addr, part.room)
            self.handle: BaseKVHandle = self.sender
            self.chunks = list(np.array_split(part.pages, part.chunks))
        else:
            self.sender = None
            self.receiver = server.manager.create_receiver(addr, part.room)
            self.handle = self.receiver
            for array in server.memory.kv:
                array[part.pages] = POISON
        self.named = False
        self._look()
        if self.sender is not None:
            self.sender.init(len(part.pages))
        else:
            self.receiver.init()

    def step(self) -> bool:
        """Look, and do what is next; whether the room has ended."""
        state = self._look()
        if state is KVPoll.Success and self.sender is None and not self.copies:
            self.copies = [array[self.part.pages] for array in self.memory.kv]
        if state.terminal:
            self.story.ended_s = self.story.ended_s or monotonic()
            return True
        waiting = state is KVPoll.WaitingForInput
        if self.part.abort is Abort.OPENED or (self.part.abort is Abort.WAITING and waiting) or self._landed():
            self.handle.abort("the check gives it up")
        elif self.sender is not None and self.chunks and state in (KVPoll.WaitingForInput, KVPoll.Transferring):
            self.sender.send(self.chunks.pop(0))
        elif self.sender is None and waiting and not self.named:
            self.named = True
            self.receiver.send_metadata(self.part.pages)
        return False

    def _landed(self) -> bool:
        if self.part.abort is not Abort.LANDED or not self.named:
            return False
        if any(int(array[page, -1]) == POISON for array in self.memory.kv for page in self.part.pages):
            return False
        return not any(bool((array[self.part.pages] == POISON).any()) for array in self.memory.kv)

    def _look(self) -> KVPoll:
        state = self.handle.poll()
        self.story.polls += 1
        if not self.story.states or state is not self.story.states[-1]:
            self.story.states.append(state)
            self.story.failure = self.handle.failure()
        metric = self.handle.get_transfer_metric()
        if not self.story.metrics or metric != self.story.metrics[-1]:
            self.story.metrics.append(metric)
        return state

    def finish(self) -> Story:
        """Clear the room; what was seen of it."""
        self.handle.clear()
        if self.copies:
            self.story.digest = digest(self.copies)
            self.story.poison = sum(int((copy == POISON).sum()) for copy in self.copies)
        return self.story


def play(
    server: FaceServer, addr: str, parts: Sequence[Part], limit_s: float, pause_s: float = PAUSE_S
) -> list[Story]:  # fmt: skip
    """In a node: play these rooms at the same time, in this thread, and clear them."""
    players = [_Player(server, addr, part) for part in parts]
    deadline = monotonic() + limit_s
    while sum(player.step() for player in players) < len(players) and monotonic() < deadline:
        sleep(pause_s)
    return [player.finish() for player in players]


def play_in_threads(
    server: FaceServer, addr: str, parts: Sequence[Sequence[Part]], limit_s: float
) -> list[list[Story]]:
    """In a node: each of these lists in a thread of its own, its rooms one after the other; all threads begin at once."""
    stories: list[list[Story]] = [[] for _ in parts]
    begin = threading.Barrier(len(parts))
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            begin.wait(limit_s)
            for part in parts[number]:
                stories[number] += play(server, addr, [part], limit_s, CROWD_PAUSE_S)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is shown
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), name=f"engine-{number}") for number in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return stories


def play_both(pair: Pair, parts: Sequence[tuple[Part, Part]], limit_s: float) -> list[tuple[Story, Story]]:
    """These rooms on both sides, (prefill, decode), at the same time."""
    pair.decode.begin(play, pair.addr, [theirs for _, theirs in parts], limit_s)
    pair.prefill.begin(play, pair.addr, [mine for mine, _ in parts], limit_s)
    mine: list[Story] = pair.prefill.finish(limit_s)
    theirs: list[Story] = pair.decode.finish(limit_s)
    return list(zip(mine, theirs, strict=True))


# -- in the suite --------------------------------------------------------------------------------------------------------


def digest(pages: Sequence[U8]) -> str:
    """Of the bytes of these arrays."""
    found = blake2b(digest_size=16)
    for array in pages:
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def digest_of(memory: Image, pages: Pages) -> str:
    """Of these pages of a memory."""
    return digest([array[pages] for array in memory.kv])


def went_well(stories: Sequence[tuple[Story, Story]]) -> None:
    """All of these rooms must have succeeded on both sides."""
    for both in stories:
        for story, side in zip(both, ("prefill", "decode"), strict=True):
            assert story.end is KVPoll.Success, f"room {story.room} on the {side} side: {story.words()}"


def moved_forward(story: Story, side: str) -> None:
    """No state comes after one that it should come before; Failed may come after any that is not final."""
    for before, after in zip(story.states, story.states[1:], strict=False):
        forward = not before.terminal and (before < after or after is KVPoll.Failed)
        assert forward, f"room {story.room} on the {side} side went from {before.name} to {after.name}: {story.words()}"


def metrics_grow(story: Story, side: str) -> None:
    """A field of the metric that is known stays known, and a number in it never gets less."""
    for before, after in zip(story.metrics, story.metrics[1:], strict=False):
        for one in fields(KVTransferMetric):
            old, new = getattr(before, one.name), getattr(after, one.name)
            if isinstance(old, int | float):
                grows = new is not None and new >= old
                assert grows, f"room {story.room} on the {side} side: {one.name} was {old!r}, and then {new!r}"
