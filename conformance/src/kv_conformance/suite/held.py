"""Bytes that are held back, with rooms and with bare transfers, and witnesses of what becomes of them.

They are held by stopping the process that receives: what its kernel has no room for waits at the sender. Whether that
holds anything is a matter of the fabric, so it is looked at, and a check that needs it is untestable where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import sleep
from typing import Any

import numpy as np
import numpy.typing as npt

from kv_conformance.harness import Fault
from kv_conformance.nodes.env import Env
from kv_conformance.nodes.face import FaceNode, Pair, Room
from kv_conformance.nodes.memory import POISON, U8, Image, Memory, Shape
from kv_conformance.nodes.wire import Road, WireNode
from kv_conformance.nodes.wire_server import Record
from kv_conformance.outcomes import Untestable
from kv_conformance.suite.in_node_abort import take_over
from kv_core import KVPoll, Role, TransferState

BIG = Shape(kv=(3, 48, 256 << 10))
"""Much more than sockets hold."""
LOOK_S = 0.3
"""How long it is looked whether what must not happen does not."""
PATIENT: Mapping[str, Any] = {"probe_interval_s": 1.0, "suspect_after": 5, "dead_after": 30}
"""Settings under which nobody is taken for dead while a check keeps it stopped."""
REUSED = 0
"""What the next owner of source pages writes there: sources are random bytes without it."""
Pages = npt.NDArray[np.int64]


def lacking(memory: Memory, pages: npt.ArrayLike) -> bool:
    """Whether poison is still to be seen in some of these pages: not all that they are to get has landed."""
    places = np.asarray(pages, np.intp)
    return any(bool((array[places] == POISON).any()) for array in memory.kv)


def see_held(memory: Memory, pages: npt.ArrayLike) -> None:
    """Raise ``Untestable`` unless what is on its way to these pages is really held back."""
    sleep(LOOK_S)
    if not lacking(memory, pages):
        raise Untestable(
            "the bytes arrive although the process that receives is stopped: this fabric does not need it. A harness may name "
            "a setting for Fault.HOLD_DATA under which it does"
        )


# -- rooms ---------------------------------------------------------------------------------------------------------------


@dataclass
class Flight:
    """A room in the middle of its way: prefill has sent, and decode is stopped. ``before``: decode's memory then."""

    pair: Pair
    sender: Room
    receiver: Room
    source: Pages
    target: Pages
    before: Image

    def owners_follow(self, limit_s: float) -> tuple[TakeOver, TakeOver]:
        """Let next owners wait for the pages of both sides: prefill's, decode's. The nodes answer nothing else until then."""
        return (
            TakeOver(self.sender, self.source, REUSED, POISON, limit_s),
            TakeOver(self.receiver, self.target, POISON, REUSED, limit_s),
        )


class TakeOver:
    """The next owner of a room's pages: fills them with ``value`` as soon as they may be used again. May be told to a stopped
    node. abort_after: let the node abort the room first, after so many seconds.
    """

    def __init__(
        self, room: Room, pages: Pages, value: int, strange: int, limit_s: float, *, abort_after: float | None = None
    ) -> None:
        self._room = room
        self._limit_s = limit_s
        room.node.begin(take_over, room.number, pages, value, strange, limit_s, abort_after)

    def done(self) -> int:
        """Wait for it; how many strange bytes there were in the pages."""
        strange: int = self._room.node.finish(self._limit_s)
        assert strange >= 0, (
            f"{self._room.node.process.name}: is_release_safe() of room {self._room.room} is still False after "
            f"{self._limit_s:.0f} s, though every process runs: nothing stands in the way of the proof"
        )
        return strange


def fly(env: Env, config: Mapping[str, Any] = PATIENT) -> Flight:
    """A pair with a room in flight over most of its pages; the rest (0 to 7) is for other rooms."""
    return fly_between(env, env.pair(BIG, fault=Fault.HOLD_DATA, config=config))


def fly_between(env: Env, pair: Pair) -> Flight:
    """The same between these two; made with ``Fault.HOLD_DATA`` and the shape ``BIG``."""
    pair.move([0, 1], [1, 0])
    source, target = (env.random.permutation(np.arange(8, BIG.kv[1])) for _ in range(2))
    sender, receiver = pair.begin(source, target)
    before = pair.decode.memory.image()
    pair.decode.freeze()
    for part in np.array_split(source, 4):
        sender.send(part)
    sender.until(KVPoll.Transferring, KVPoll.Failed)
    see_held(pair.decode.memory, target)
    return Flight(pair, sender, receiver, source, target, before)


def kept(node: FaceNode, room: Room) -> bool:
    """Whether the pages of an ended room must not be used yet; if so, the snapshot has to name them."""
    quarantined = node.snapshot()["quarantined"]
    safe = room.is_release_safe()
    assert safe or quarantined, (
        f"{node.process.name}: is_release_safe() of room {room.room} is False after its end, and snapshot()['quarantined'] is "
        "empty: pages that can't be used must be counted"
    )
    return not safe


def unchanged(pair: Pair, expected: Image) -> None:
    """Nothing may land any more: looked at for a while, and with traffic that would push what was stuck somewhere."""
    sleep(LOOK_S)
    wrong = pair.decode.memory.difference(expected)
    assert not wrong, f"bytes landed after is_release_safe() had said that none can: {wrong}"
    pair.good_room()
    pair.good_room()


# -- transfers -----------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """Transfers to a peer that is stopped. ``items``: by transfer, its (local, remote) pages."""

    writer: WireNode
    target: WireNode
    road: Road
    items: dict[int, tuple[Pages, Pages]]

    @property
    def numbers(self) -> list[int]:
        """The transfers."""
        return list(self.items)


def load(env: Env, transfers: int = 6) -> Load:
    """Large transfers to a target that is stopped, from a writer that has written to it before."""
    writer, target = env.ends(BIG, fault=Fault.HOLD_DATA)
    return load_onto(env, writer, target, writer.meet(target), transfers)


def load_onto(env: Env, writer: WireNode, target: WireNode, road: Road, transfers: int = 6) -> Load:
    """The same, for ends that are there already. Page 0 is written; all others are on their way."""
    writer.write(road, ([0], [0]))
    target.freeze()
    here, there = (np.array_split(env.random.permutation(np.arange(1, BIG.kv[1])), transfers) for _ in range(2))
    items = {writer.submit(road, (mine, theirs)): (mine, theirs) for mine, theirs in zip(here, there, strict=True)}
    see_held(target.memory, np.concatenate(there))
    return Load(writer, target, road, items)


class Witness:
    """Holds a transport to its word: remembers a transfer's pages as they were when it was called quiescent."""

    def __init__(self, work: Load) -> None:
        self.work = work
        self.records: dict[int, Record] = {}
        self.pages: dict[int, list[U8]] = {}
        self.open = list(work.items)

    def look(self) -> None:
        """One call of ``progress`` for what is not quiescent; what is, is released, as core does it."""
        owed = {number for number in self.open if self._failed(number)}
        told = {record.number: record for record in self.work.writer.progress(*self.open)}
        silent = owed - set(told)
        assert not silent, (
            f"transfer {min(silent)} is FAILED and not quiescent, and this call of progress() says nothing of it: it must be "
            "reported again on each call until its record says quiescent"
        )
        self.records.update(told)
        for number, record in told.items():
            assert record.state is not TransferState.DONE or record.quiescent, (
                f"transfer {number} is DONE and not quiescent: DONE implies quiescent"
            )
            assert record.state is not TransferState.PENDING or not record.quiescent, (
                f"transfer {number} is PENDING and quiescent: what can't move a byte any more is DONE or FAILED"
            )
            if record.quiescent:
                self.pages[number] = self._bytes(number)
                self.open.remove(number)
                self.work.writer.release(number)

    def watch(self, seconds: float) -> None:
        """Look for a while, or until all are quiescent."""
        rounds = int(seconds / 0.02)
        for _ in range(rounds):
            if not self.open:
                return
            self.look()
            sleep(0.02)

    def state(self, number: int) -> TransferState:
        """What was said of it last."""
        return self.records[number].state if number in self.records else TransferState.PENDING

    def settled(self) -> bool:
        """Whether all have ended, and look."""
        self.look()
        return all(self.state(number) is not TransferState.PENDING for number in self.work.items)

    def compare(self) -> None:
        """Now, when everything has had its time: what was quiescent must be as it was; what is done, complete; and nothing
        else may be anywhere than what was sent there.
        """
        for number, then in self.pages.items():
            for layer, (old, new) in enumerate(zip(then, self._bytes(number), strict=True)):
                changed = int((old != new).sum())
                assert not changed, (
                    f"transfer {number} was {self.state(number).value} and called quiescent, and then {changed} bytes of it "
                    f"landed in buffer {layer}: a record that says quiescent is final"
                )
        expected = self.work.target.memory.image()
        writer = self.work.writer.memory
        for number, (here, there) in self.work.items.items():
            for layer, sent in enumerate(writer.kv):
                array = expected.kv[layer]
                landed = array[there] != POISON
                wanted = np.ones_like(landed) if self.state(number) is TransferState.DONE else landed
                array[there] = np.where(wanted, sent[here], POISON)
        wrong = self.work.target.memory.difference(expected)
        assert not wrong, f"the target's memory: {wrong}"

    def _failed(self, number: int) -> bool:
        return number in self.records and self.records[number].state is TransferState.FAILED

    def _bytes(self, number: int) -> list[U8]:
        there = self.work.items[number][1]
        return [array[there] for array in self.work.target.memory.kv]


def stay_untouched(node: WireNode, expected: Image, why: str) -> None:
    """Look for a while whether anything lands in a node's memory."""
    sleep(LOOK_S)
    wrong = node.memory.difference(expected)
    assert not wrong, f"{why}: {wrong}"


def serves(env: Env, writer: WireNode, shape: Shape = BIG) -> None:
    """The writer must still serve a peer that it has not met."""
    fresh = env.wire(Role.DECODE, shape, fault=Fault.HOLD_DATA)
    road = writer.meet(fresh)
    expected = fresh.memory.image()
    expected.take(writer.memory, [3, 4], [4, 5])
    writer.write(road, ([4, 5], [3, 4]))
    wrong = fresh.memory.difference(expected)
    assert not wrong, f"a peer that was met afterwards: {wrong}"


def states(records: Sequence[Record]) -> str:
    """For messages."""
    return ", ".join(f"{r.state.value}{' and quiescent' if r.quiescent else ''}" for r in records)
