"""A peer that speaks the protocol's words in any order, with any numbers: nothing raises, and everything still ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from core.tests.protocol.support import SHORT, Bench, Rank
from kv_core.contract.enums import Role
from kv_core.protocol import messages as msg
from kv_core.protocol.effects import VerifyDigests

ROUNDS = 150


class Liar:
    """Makes up messages and packets about rooms that exist, or might."""

    def __init__(self, seed: int, numbers: list[int], lives: list[int]) -> None:
        self.rng = random.Random(seed)
        self.numbers = numbers
        self.lives = lives

    def number(self) -> int:
        return self.rng.choice((*self.numbers, *self.numbers, self.rng.randrange(2**63), 0, 2**63 - 1))

    def life(self) -> int:
        return self.rng.choice((*self.lives, *self.lives, *range(1, 12), 2**63 - 1))

    def count(self) -> int:
        return self.rng.choice((0, 1, 2, 3, 47, 48, 2**32, 2**63 - 1))

    def indices(self) -> msg.WireIndices:
        if self.rng.random() < 0.2:
            return msg.WireIndices(self.count(), self.rng.randbytes(self.rng.randrange(20)))
        items = [self.rng.choice((0, 1, 5, 47, 48, 2**40, 2**64 - 1)) for _ in range(self.rng.randrange(4))]
        return msg.WireIndices.of(np.array(items, np.uint64))

    def states(self) -> dict[str, msg.WireIndices]:
        return {name: self.indices() for name in ("mamba", "kv", "aux", "", "x" * 100) if self.rng.random() < 0.2}

    def failure(self) -> msg.WireFailure:
        word = self.rng.choice(("timeout", "aborted_local", "", "nonsense", "transfer"))
        return msg.WireFailure(word, word, word, word, self.rng.random() < 0.5, word, word)

    def digest(self) -> msg.ChunkDigest:
        rng = self.rng
        return msg.ChunkDigest(
            self.count(), self.count(), rng.randrange(-5, 5), rng.randrange(9), {"mamba": (1, 2)}, rng.random() < 0.5,
            rng.randrange(2**64),
        )  # fmt: skip

    def message(self) -> msg.Message:
        rng, number, life = self.rng, self.number(), self.life()
        make: list[Callable[[], msg.Message]] = [
            lambda: msg.Announce(number, life, rng.choice((1, 1, 2, 65_536))),
            lambda: msg.Metadata(
                number, life, self.indices(), self.states(), rng.choice((None, self.count())), self.count(),
                rng.choice((1, 1, 2, 65_536)),
            ),
            lambda: msg.Abort(number, life, self.failure()),
            lambda: msg.Concluded(number, life, rng.choice((None, self.failure()))),
            lambda: msg.Lease([self.life() for _ in range(rng.randrange(5))]),
            lambda: msg.Bound(number, life, self.life()),
            lambda: msg.Done(
                number, life, self.life(), self.count(), self.count(), rng.random(), "x", self.count(),
                [self.digest() for _ in range(rng.choice((0, 0, 2)))], [b"row"] * rng.choice((0, 0, 1)),
            ),
            lambda: msg.Failed(number, life, self.failure(), rng.random() < 0.5),
            lambda: msg.Quiesced(number, life),
            lambda: msg.SessionQuiesced(self.count()),
        ]  # fmt: skip
        return rng.choice(make)()

    def packet(self, me: str, to: Rank, session: int, seq: int, ack: int) -> msg.Packet:
        rng = self.rng
        head: dict[str, Any] = {
            "sender": rng.choice((me, me, me, "x.9")), "receiver": rng.choice((to.name, to.name, to.name, "y.9")),
            "session": rng.choice((session, session, session, 0, min(session + 1, 2**63 - 1), 2**63 - 1)),
        }  # fmt: skip
        introduction = to.bench.ranks["tcp://p:7000"].machine.me.introduction
        make: list[Callable[[], msg.Packet]] = [
            lambda: msg.Hello(**head, introduction=introduction, rooms=[self.number()]),
            lambda: msg.Welcome(**head, introduction=introduction),
            lambda: msg.Ping(**head, number=self.count(), ack=self.count(), endpoint="tcp://z:1"),
            lambda: msg.Pong(**head, number=self.count(), ack=rng.choice((0, ack)), stalled_s=0.0),
            lambda: msg.Data(**head, seq=self.count(), ack=0, messages=[self.message()]),
        ]
        if rng.random() < 0.03:
            make = [
                lambda: msg.Reset(**head, about=rng.choice((me, "x.9"))), lambda: msg.Bye(**head, quiescent=False),
                lambda: msg.Refuse(**head, failure=self.failure()),
            ]  # fmt: skip
        return rng.choice(make)()


def honest_work(rank: Rank, other: Rank, liar: Liar) -> None:
    """What the engine and the transport of the side that is lied to do meanwhile."""
    rng, bench = liar.rng, rank.bench
    machine = rank.machine
    rooms = list(machine.table.values())
    what = rng.random()
    if what < 0.15:
        room = rank.open(rng.choice(liar.numbers))
        liar.lives.append(room.life)
        rank.init(room, rng.randrange(3))
    elif what < 0.3 and rooms:
        room = rng.choice(rooms)
        if machine.me.role is Role.PREFILL:
            rank.send(room, *range(rng.randrange(3)))
        else:
            rank.offer(room, *range(rng.randrange(3)))
    elif what < 0.4 and rooms:
        rank.clear(rng.choice(rooms))
    elif what < 0.5 and rank.chunks:
        chunk = rank.claim()
        if chunk is not None:
            rank.land(chunk)
    for job in rank.wants(VerifyDigests):
        rank.do(machine.on_verified, job.room, job.link, rng.choice((None, "differs")))
    bench.now += rng.choice((0.0, 0.01, 0.3))
    rank.do(machine.tick)
    bench.wire.clear()
    assert other.name


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("victim", ["prefill", "decode"])
def test_lies_of_a_peer(victim: str, seed: int):
    bench = Bench()
    prefill, decode = bench.pair()
    rank, liar_rank = (prefill, decode) if victim == "prefill" else (decode, prefill)
    me = liar_rank.name
    liar = Liar(seed, [5, 6, 7], [1, 2])
    for _ in range(ROUNDS):
        honest_work(rank, liar_rank, liar)
        peer = rank.machine.peers.get(me)
        session, seq = (peer.session, peer.link.ack + 1) if peer is not None else (3, 1)
        if liar.rng.random() < 0.7:
            data = msg.Data(
                sender=me, receiver=rank.name, session=session, seq=seq, ack=0,
                messages=[liar.message() for _ in range(liar.rng.randrange(1, 4))],
            )  # fmt: skip
            rank.do(rank.machine.on_packet, bench.codec.decode(bench.codec.encode(data)))
        else:
            rank.do(rank.machine.on_packet, liar.packet(me, rank, session, seq, seq))
        rank.machine.snapshot()
        for room in rank.machine.table.values():
            assert len(rank.ends(room)) == room.ended
    _all_ends(bench, rank)


def _all_ends(bench: Bench, rank: Rank) -> None:
    """The liar falls silent; whatever is left has to end by itself."""
    bench.wire.clear()
    bench.dead.update(each.name for each in bench.ranks.values() if each is not rank)
    bench.pass_time(3 * SHORT.waiting_timeout_s + SHORT.bootstrap_timeout_s, step=1.0)
    for job in rank.wants(VerifyDigests):
        rank.do(rank.machine.on_verified, job.room, job.link, None)
    for room in list(rank.machine.table.values()):
        assert room.ended or room.phase.value == "ready", room.phase
        rank.clear(room)
    while rank.chunks:
        chunk = rank.claim()
        if chunk is not None:
            rank.land(chunk)
    bench.pass_time(20, step=1.0)
    shot = rank.machine.snapshot()
    assert shot["rooms"] == shot["live_rooms"] == 0
    assert shot.get("early_rooms", 0) == 0
    assert all(entry["missing"] for entry in shot["quarantined"])
