"""Prefill ranks that serve no decode rank: told of each room, never waited for, and never given pages to write."""

from __future__ import annotations

from typing import Any

import pytest

from core.tests.protocol.support import SHORT, Bench, Rank, at_rest, identity
from core.tests.simulation.rules import Items, Rules
from kv_core.contract.enums import FailureCode, Role
from kv_core.protocol import messages as msg
from kv_core.protocol.chunks import ChunkResult
from kv_core.protocol.decode import DecodeMachine
from kv_core.protocol.handshake import Difference, Fields, PeerLayout, SourceRanks
from kv_core.protocol.prefill import PrefillMachine
from kv_core.protocol.rooms import Room


class Idle(Items):
    """A peer between which and this rank nothing moves."""

    idle = True

    def moves(self, pool: str) -> bool:
        """Nothing."""
        return False


class Uneven(Rules):
    """Prefill's rank 1 serves nobody, rank 0 serves ``destinations`` decode ranks. Who is a dummy says so in its fields."""

    def __init__(self, destinations: int = 1, *, dummy: bool = False, lacks: bool = False) -> None:
        super().__init__(destinations)
        self._dummy = dummy
        self._lacks = lacks

    def read(self, wire: dict[str, Any], fields: Fields) -> Items:
        """The layout, idle between a dummy and anybody."""
        return (Idle if self._dummy or fields.get("place") == "dummy" else Items)(dict(wire))

    def missing(self, sources: list[PeerLayout]) -> list[Difference]:
        """A layer, if so wished."""
        return [Difference("kv.layer", "0..3", "0..1")] if self._lacks else []

    def sources(self, sizes: tuple[int, int, int, int], dp_rank: int, page_size: int) -> SourceRanks:
        """The first rank, and the second as a dummy."""
        return SourceRanks({(0, 0, 0, 0): self._destinations}, ((1, 0, 0, 0),))


class Scene:
    """A prefill rank that serves, one that does not, and a decode rank."""

    def __init__(self, *, lacks: bool = False) -> None:
        self.bench = Bench()
        self.serving = self.bench.prefill("p0.1")
        self.dummy = self._prefill_dummy("p1.1")
        self.decode = self.bench._add(DecodeMachine(identity(Role.DECODE, "d.1"), SHORT, Uneven(lacks=lacks)))
        if not lacks:
            self.bench.meet(self.decode)

    def _prefill_dummy(self, name: str) -> Rank:
        made = self.bench.prefill(name)
        identity_of = identity(Role.PREFILL, name, place="dummy")
        made.machine = PrefillMachine(identity_of, SHORT, Uneven(dummy=True))
        return made

    def opened(self) -> tuple[Room, Room, Room]:
        """A room on all three, to which decode has named its pages."""
        source, idle = self.serving.open(5), self.dummy.open(5)
        for rank, room in ((self.serving, source), (self.dummy, idle)):
            rank.init(room, 2)
        target = self.decode.open(5)
        self.decode.init(target)
        self.decode.offer(target, 3, 4)
        self.bench.pump()
        return source, idle, target

    def land_nothing(self) -> None:
        """The transfer engine finds nothing to move for the dummy."""
        chunk = self.dummy.claim()
        assert chunk is not None
        now = self.bench.now
        self.dummy.do(self.dummy.machine.chunk_landed, chunk, ChunkResult(0, now, now))


def test_decode_does_not_wait_for_a_dummy():
    scene = Scene()
    source, idle, target = scene.opened()
    scene.serving.send(source, 1, 2)
    scene.serving.land()
    scene.bench.pump()
    assert [room.phase.value for room in (source, target)] == ["success"] * 2
    assert not idle.ended, "its engine has not sent yet"
    scene.dummy.send(idle, 1, 2)
    scene.land_nothing()
    assert idle.phase.value == "success", "decode's verdict had come before"
    scene.bench.pass_time(1)  # for the acknowledgements
    at_rest(scene.serving, scene.dummy, scene.decode, but="rooms")


def test_a_dummy_that_is_first_waits_for_the_verdict_as_long_as_it_takes():
    scene = Scene()
    source, idle, target = scene.opened()
    scene.dummy.send(idle, 1, 2)
    scene.land_nothing()
    scene.bench.pump()
    assert idle.phase.value == "confirming"
    assert not target.ended
    scene.serving.send(source, 1)
    scene.serving.land()
    for _ in range(3):  # longer than its own limit, while the other moves
        scene.bench.pass_time(SHORT.transferring_timeout_s * 0.7)
        assert not idle.ended
        assert not target.ended
        source.last_move = scene.bench.now
    scene.serving.send(source, 2)
    scene.serving.land()
    scene.bench.pump()
    assert [room.phase.value for room in (source, idle, target)] == ["success"] * 3


def test_pages_are_not_exposed_to_a_dummy():
    scene = Scene()
    source, idle, target = scene.opened()
    assert [link.exposed for link in target.links.values()] == [True, False]
    scene.serving.send(source, 1, 2)
    chunk = scene.serving.claim()
    scene.decode.abort(target)
    scene.bench.dead.add("p1.1")
    scene.bench.pump()
    assert not target.release_safe, "the one that serves still writes"
    scene.serving.do(scene.serving.machine.chunk_quiescent, chunk)
    scene.bench.pump()
    assert target.release_safe, "the dummy's word is not needed"
    assert not idle.ended


def test_what_ends_badly_ends_for_the_dummy_as_well():
    scene = Scene()
    source, idle, target = scene.opened()
    scene.serving.abort(source, "out of memory")
    scene.bench.pump()
    for room in (idle, target):
        assert room.failure is not None
        assert (room.failure.code, room.failure.message) == (FailureCode.ABORTED_REMOTE, "out of memory")


def test_a_verdict_that_comes_too_early_from_one_that_is_served_is_no_verdict():
    scene = Scene()
    source, _, target = scene.opened()
    (link,) = source.links.values()
    scene.serving.do(scene.serving.machine.on_packet, _data(scene, link, msg.Concluded(5, link.life, None)))
    assert not link.verdict
    assert scene.serving.machine.counters["unexpected_messages"] == 1
    assert not target.ended


def _data(scene: Scene, link: Any, message: msg.Message) -> msg.Data:
    peer = link.peer
    seq = scene.decode.machine.peers["p0.1"].link._next_seq
    return msg.Data(sender=peer.name, receiver="p0.1", session=peer.session, seq=seq, ack=0, messages=[message])


@pytest.mark.parametrize("named", [False, True])
def test_a_layer_that_nobody_has_fails_the_room_before_a_byte_moves(named: bool):
    scene = Scene(lacks=True)
    source, target = scene.serving.open(5), scene.decode.open(5)
    scene.decode.init(target)
    if named:
        scene.decode.offer(target, 3, 4)
    scene.bench.pump()
    assert target.failure is not None
    assert target.failure.code is FailureCode.INCOMPATIBLE
    assert "kv.layer (decode '0..3', prefill '0..1')" in target.failure.message
    assert source.failure is not None, "prefill hears of it"
    assert source.failure.code is FailureCode.INCOMPATIBLE
    assert target.release_safe


def test_each_source_is_told_how_many_decode_ranks_it_serves():
    """Unequal shares: rank 0 serves two decode ranks, rank 1 one of them."""

    class Shares(Rules):
        def sources(self, sizes: tuple[int, int, int, int], dp_rank: int, page_size: int) -> SourceRanks:
            return SourceRanks({(0, 0, 0, 0): 2, (1, 0, 0, 0): 1} if self._destinations == 1 else {(0, 0, 0, 0): 2})

    bench = Bench()
    prefills = [bench.prefill(f"p{n}.1") for n in range(2)]
    decodes = [bench._add(DecodeMachine(identity(Role.DECODE, f"d{n}.1"), SHORT, Shares(n + 1))) for n in range(2)]
    sources = [prefill.open(5) for prefill in prefills]
    targets = []
    for decode in decodes:
        target = decode.open(5)
        decode.init(target)
        decode.offer(target, 3, 4)
        targets.append(target)
    bench.pump()
    for prefill, source, links in zip(prefills, sources, (2, 1), strict=True):
        assert len(source.links) == source.required == links
        prefill.init(source, 2)
        prefill.send(source, 1, 2)
        while prefill.chunks:
            prefill.land()
    bench.pump()
    assert [room.phase.value for room in (*sources, *targets)] == ["success"] * 4
    assert [room.metric.transfer_total_bytes for room in sources] == [200, 100]
    assert [room.metric.transfer_total_bytes for room in targets] == [200, 100], "what came to this rank, no more"
