"""A manager in a node, and rooms between two of them, as the checks use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kv_conformance.nodes.face_server import Look
from kv_conformance.nodes.memory import Image, Memory
from kv_conformance.nodes.process import Process
from kv_core import Failure, KVPoll, KVTransferMetric, PeerEvent, RoomEvent

ENDED = (KVPoll.Failed, KVPoll.Success)
LASTING = frozenset({
    "fabrics", "peers", "nodes", "connections", "established", "probes", "tombstones", "resolving",
    "dropped", "frames_in", "frames_out", "dropped_chunks", "stray_records", "staged_batches",
})  # fmt: skip
"""What outlives rooms in a snapshot on purpose, or only ever grows."""


class FaceNode:
    """One rank's process: a manager over the backend under test."""

    def __init__(self, process: Process, memory: Memory, patience_s: float) -> None:
        self.process = process
        self.memory = memory
        self.patience_s = patience_s

    @property
    def bootstrap_addr(self) -> str:
        """Address of the bootstrap server that runs in this node."""
        addr: str | None = self.process.ask("bootstrap_addr")
        assert addr is not None, "the node was made without one"
        return addr

    def open(self, addr: str, room: int) -> Room:
        """``create_sender`` or ``create_receiver``, as the node's role is."""
        return Room(self, self.process.ask("open", addr, room), room)

    def await_state(
        self, rooms: Sequence[Room], *states: KVPoll, limit_s: float | None = None, must: bool = True
    ) -> list[Look]:
        """Wait until each room is in one of these states (in any that is final, if none is named)."""
        wanted, limit = states or ENDED, self.patience_s if limit_s is None else limit_s
        looks: list[Look] = self.process.ask("await_state", [r.number for r in rooms], wanted, limit, limit_s=limit)
        for room, look in zip(rooms, looks, strict=True):
            assert not must or look.state in wanted, (
                f"room {room.room} at {self.process.name} is {look.state.name} (waited for at most {limit:.0f} s), expected "
                f"{' or '.join(state.name for state in wanted)}; failure: {look.failure}"
            )
        return looks

    def await_safe(self, *rooms: Room, limit_s: float | None = None, must: bool = True) -> bool:
        """Wait until the pages of these rooms may be used again."""
        limit = self.patience_s if limit_s is None else limit_s
        safe: list[bool] = self.process.ask("await_safe", [room.number for room in rooms], limit, limit_s=limit)
        assert not must or all(safe), (
            f"{self.process.name}: is_release_safe() is still False after {limit:.0f} s for rooms "
            f"{[room.room for room, good in zip(rooms, safe, strict=True) if not good]}"
        )
        return all(safe)

    def snapshot(self) -> dict[str, Any]:
        """The manager's."""
        found: dict[str, Any] = self.process.ask("snapshot")
        return found

    def unrest(self) -> list[str]:
        """What in the snapshot says that something is alive; empty at rest."""
        return _unrest(self.snapshot())

    def fabrics(self) -> list[str]:
        """The transports in use."""
        found: list[str] = self.process.ask("fabrics")
        return found

    def events(self) -> tuple[list[RoomEvent], list[PeerEvent]]:
        """What the recording observer was told so far (of a node made with ``observed=True``)."""
        found: tuple[list[RoomEvent], list[PeerEvent]] = self.process.ask("events")
        return found

    def call(self, function: Callable[..., Any], *args: Any, limit_s: float | None = None) -> Any:
        """Call ``function(server, *args)`` in the node; a function at the top of a module of the suite. ``server`` is the
        node's ``FaceServer``: ``server.manager``, ``server.handles[room.number]``, ``server.memory``.
        """
        return self.process.ask("call", function, *args, limit_s=limit_s)

    def begin(self, function: Callable[..., Any], *args: Any) -> None:
        """As ``call``, without waiting: ``finish`` must follow before anything else is asked of this node. A node that is
        frozen begins when it is thawed.
        """
        self.process.tell("call", function, *args)

    def finish(self, limit_s: float | None = None) -> Any:
        """What the function of ``begin`` returned."""
        return self.process.answer("call", limit_s)

    def close(self) -> None:
        """Close the manager; the process lives on."""
        self.process.ask("close")

    def reopen(self) -> None:
        """A new manager, of the same order, in the place of one that was closed; rooms of the old one are forgotten."""
        self.process.ask("reopen")

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def freeze(self) -> None:
        """SIGSTOP."""
        self.process.freeze()

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.thaw()


class Room:
    """A handle in a node. Its methods are the handle's."""

    def __init__(self, node: FaceNode, number: int, room: int) -> None:
        self.node = node
        self.number = number
        self.room = room

    def do(self, method: str, *args: Any, **named: Any) -> Any:
        """Call any method of the handle."""
        return self.node.process.ask("do", self.number, method, *args, **named)

    def init(self, *args: Any, **named: Any) -> None:
        """``init`` of a sender (pages, auxiliary row) or of a receiver."""
        self.do("init", *args, **named)

    def send(self, kv: npt.ArrayLike, **named: Any) -> None:
        """The sender's ``send``."""
        self.do("send", np.asarray(kv, np.uint64), **named)

    def send_metadata(self, kv: npt.ArrayLike, **named: Any) -> None:
        """The receiver's ``send_metadata``."""
        self.do("send_metadata", np.asarray(kv, np.uint64), **named)

    def poll(self) -> KVPoll:
        """``poll``."""
        state: KVPoll = self.do("poll")
        return state

    def failure(self) -> Failure | None:
        """``failure``."""
        found: Failure | None = self.do("failure")
        return found

    def metric(self) -> KVTransferMetric:
        """``get_transfer_metric``."""
        found: KVTransferMetric = self.do("get_transfer_metric")
        return found

    def is_release_safe(self) -> bool:
        """``is_release_safe``."""
        answer: bool = self.do("is_release_safe")
        return answer

    def abort(self, reason: str = "") -> None:
        """``abort``."""
        self.do("abort", reason)

    def clear(self) -> None:
        """``clear``."""
        self.do("clear")

    def look(self) -> Look:
        """State, failure, metric, and whether its pages may be used again, all at one moment."""
        found: Look = self.node.process.ask("look", self.number)
        return found

    def until(self, *states: KVPoll, limit_s: float | None = None) -> Look:
        """Wait until it is in one of these states (in any final one, if none is named)."""
        return self.node.await_state([self], *states, limit_s=limit_s)[0]

    def failed(self, limit_s: float | None = None) -> Failure:
        """Wait until it has failed, which it must; why."""
        look = self.until(KVPoll.Failed, KVPoll.Success, limit_s=limit_s)
        assert look.state is KVPoll.Failed, (
            f"room {self.room} at {self.node.process.name} succeeded, expected a failure"
        )
        assert look.failure is not None, f"room {self.room} at {self.node.process.name} has failed without a failure()"
        return look.failure


class Pair:
    """A prefill and a decode node, and a bootstrap server."""

    def __init__(self, prefill: FaceNode, decode: FaceNode, addr: str, random: np.random.Generator) -> None:
        self.prefill = prefill
        self.decode = decode
        self.addr = addr
        self.random = random
        self._rooms = iter(range(1, 1 << 62))

    def number(self) -> int:
        """A room number that this pair has not used."""
        return next(self._rooms)

    def open(self, room: int | None = None) -> tuple[Room, Room]:
        """(sender, receiver) of a room, nothing said to either but the receiver's ``init``."""
        number = self.number() if room is None else room
        receiver = self.decode.open(self.addr, number)
        receiver.init()
        return self.prefill.open(self.addr, number), receiver

    def begin(
        self, source: npt.ArrayLike, target: npt.ArrayLike, *, room: int | None = None, aux: tuple[int, int] | None = None,
        states: Mapping[str, tuple[Sequence[int], Sequence[int]]] | None = None,
    ) -> tuple[Room, Room]:  # fmt: skip
        """A room in which both sides have named their pages, and nothing was sent; aux, states: (source, target) indices."""
        sender, receiver = self.open(room)
        mine, theirs = (None, None) if aux is None else aux
        sender.init(len(np.asarray(source)), mine)
        there = {name: np.asarray(pair[1], np.uint64) for name, pair in (states or {}).items()}
        receiver.send_metadata(target, aux_index=theirs, state_indices=there or None)
        sender.until(KVPoll.WaitingForInput, KVPoll.Failed)
        return sender, receiver

    def move(
        self, source: npt.ArrayLike, target: npt.ArrayLike, *, chunks: int = 1, room: int | None = None,
        aux: tuple[int, int] | None = None, states: Mapping[str, tuple[Sequence[int], Sequence[int]]] | None = None,
        clear: bool = True,
    ) -> tuple[Room, Room]:  # fmt: skip
        """A room from its opening to its good end: every byte of both memories must then be what it should be."""
        expected = self.expectation(source, target, aux=aux, states=states)
        before = self.prefill.memory.image()
        sender, receiver = self.begin(source, target, room=room, aux=aux, states=states)
        here = {name: np.asarray(pair[0], np.uint64) for name, pair in (states or {}).items()}
        parts = np.array_split(np.asarray(source, np.uint64), chunks)
        for number, part in enumerate(parts):
            sender.send(part, state_indices=(here or None) if number == len(parts) - 1 else None)
        self.succeed(sender, receiver)
        self.compare(expected, before)
        if clear:
            sender.clear()
            receiver.clear()
        return sender, receiver

    def expectation(
        self, source: npt.ArrayLike, target: npt.ArrayLike, *, aux: tuple[int, int] | None = None,
        states: Mapping[str, tuple[Sequence[int], Sequence[int]]] | None = None,
    ) -> Image:  # fmt: skip
        """Decode's memory as it shall be after such a room, made from both memories as they are now."""
        expected = self.decode.memory.image()
        expected.take(self.prefill.memory, target, source)
        for name, (mine, theirs) in (states or {}).items():
            expected.take(self.prefill.memory, theirs, mine, name)
        if aux is not None:
            expected.take(self.prefill.memory, [aux[1]], [aux[0]], "aux")
        return expected

    def compare(self, expected: Image, source: Image | None = None) -> None:
        """Decode's memory must be as expected, prefill's as it was."""
        wrong = self.decode.memory.difference(expected)
        assert not wrong, f"decode's memory: {wrong}"
        if source is not None:
            wrong = self.prefill.memory.difference(source)
            assert not wrong, f"prefill's memory was changed: {wrong}"

    def succeed(self, *rooms: Room) -> None:
        """Wait for these rooms' end, which must be a success."""
        for room in rooms:
            look = room.until(*ENDED)
            assert look.state is KVPoll.Success, f"room {room.room} at {room.node.process.name} failed: {look.failure}"

    def good_room(self, pages: int = 3) -> None:
        """A room that must go well, with random pages of both sides: to see that everything still works."""
        source = self.random.permutation(self.prefill.memory.shape.kv[1])[:pages]
        target = self.random.permutation(self.decode.memory.shape.kv[1])[:pages]
        self.move(source, target)


def _unrest(snapshot: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for name, value in snapshot.items():
        if name in LASTING:
            continue
        if isinstance(value, Mapping):
            found += [f"{name}.{text}" for text in _unrest(value)]
        elif any(value) if isinstance(value, (list, tuple)) else value:
            found.append(f"{name}={value}")
    return found
