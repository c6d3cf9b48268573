"""The oracle of KV-MODEL-1: what may be seen, and what must come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kv_conformance.nodes.memory import Memory, Shape
from kv_conformance.suite.model_book import Book
from kv_conformance.suite.model_ledger import Ledger
from kv_conformance.suite.model_life import Broken, Life, Seen
from kv_core import FailureCode, KVPoll, Role

SHAPE = Shape(kv=(1, 8, 16), aux=(1, 2, 4), gap=16)
NOTHING = (None,) * 5
P, D = Role.PREFILL, Role.DECODE


class History:
    """A book, and a short way to write in it."""

    def __init__(self) -> None:
        memory = Memory(SHAPE)
        memory.poison()
        self.memory = memory
        self.book = Book(Ledger(memory))
        self.number = 0

    def open(self, side: Role, room: int = 1) -> Life:
        self.number += 1
        return self.book.opened(f"{side.value[0]}{self.number}", side, room, 0.0)

    def pair(self, pages: int = 2) -> tuple[Life, Life]:
        """A room in which both sides have said everything, bytes of 7 being sent."""
        sender, receiver = self.open(P), self.open(D)
        sender.initialised = receiver.initialised = True
        sender.count = pages
        self.book.offered(receiver, range(pages), None)
        self.book.sent(sender, range(pages), [np.full(16, 7, np.uint8)] * pages, calls=1, aux=None)
        return sender, receiver

    def land(self, pages: int = 2) -> None:
        self.memory.kv[0][:pages] = 7

    def see(self, **looks: tuple[Life, Seen]) -> None:
        for life, seen in looks.values():
            self.book.saw(life, seen)
        self.book.check()
        self.book.step += 1


def live(state: KVPoll) -> Seen:
    return Seen(state, None, "", None, 0, NOTHING, release_safe=False, now_s=1.0)


def good(pages: int = 2, *, safe: bool = True, **changes: Any) -> Seen:
    latencies = (0.1, 0.1, 0.1, 0.1, 0.5)
    return Seen(KVPoll.Success, None, "", 16 * pages, 1, latencies, safe, 1.0)._replace(**changes)


def failed(code: FailureCode, *, safe: bool = True, **changes: Any) -> Seen:
    return Seen(KVPoll.Failed, code, "why", None, 0, NOTHING, safe, 1.0)._replace(**changes)


def test_a_good_room() -> None:
    history = History()
    sender, receiver = history.pair()
    history.see(s=(sender, live(KVPoll.Transferring)), r=(receiver, live(KVPoll.Transferring)))
    assert sender.partner is receiver
    assert history.book.waits()
    history.land()
    history.see(r=(receiver, good()))
    assert f"{receiver} succeeded, and {sender} is Transferring" in history.book.waits()
    history.see(s=(sender, good()))
    assert history.book.waits() == []


def test_success_without_the_bytes() -> None:
    history = History()
    _, receiver = history.pair()
    with pytest.raises(Broken, match="bytes of .* are not there"):
        history.see(r=(receiver, good()))


def test_success_before_everything_was_sent() -> None:
    history = History()
    sender, receiver = history.pair()
    sender.count = 3
    with pytest.raises(Broken, match="can't be"):
        history.see(r=(receiver, good()))


@pytest.mark.parametrize("later", [live(KVPoll.Transferring), failed(FailureCode.PEER_LOST), good(nbytes=48)])
def test_an_end_is_final(later: Seen) -> None:
    history = History()
    sender, receiver = history.pair()
    history.land()
    history.see(s=(sender, good()), r=(receiver, good()))
    with pytest.raises(Broken, match="had ended and has changed"):
        history.see(s=(sender, later))


def test_poll_does_not_go_back() -> None:
    history = History()
    sender, _ = history.pair()
    history.see(s=(sender, live(KVPoll.Transferring)))
    with pytest.raises(Broken, match="went back"):
        history.see(s=(sender, live(KVPoll.WaitingForInput)))


def test_nobody_is_bound_to_nobody() -> None:
    history = History()
    sender = history.open(P)
    with pytest.raises(Broken, match="can't be"):
        history.see(s=(sender, live(KVPoll.WaitingForInput)))


@pytest.mark.parametrize(
    ("seen", "what"),
    [
        (good(nbytes=16), "16 bytes, expected 32"),
        (good(chunks=2), "2 chunks, expected 1"),
        (good(latencies=(0.1, 0.1, 0.1, 0.1, 1.5)), "duration of 1.5"),
        (good(latencies=(-0.1, 0.1, 0.1, 0.1, 0.5)), "duration of -0.1"),
        (good(code=FailureCode.PEER_LOST), "failure.. says peer_lost"),
    ],
)
def test_a_metric_of_another_room(seen: Seen, what: str) -> None:
    history = History()
    sender, _ = history.pair()
    history.land()
    with pytest.raises(Broken, match=what):
        history.see(s=(sender, seen))


def test_a_failure_needs_a_reason() -> None:
    history = History()
    sender, _ = history.pair()
    with pytest.raises(Broken, match="nothing that happened is a reason"):
        history.see(s=(sender, failed(FailureCode.TRANSPORT_ERROR)))


def test_an_abort_ends_one_room_of_the_other_side_and_no_second() -> None:
    history = History()
    sender, receiver = history.pair()
    history.see(s=(sender, live(KVPoll.Transferring)), r=(receiver, live(KVPoll.Transferring)))
    history.book.cut(receiver, clear=True)
    history.see(s=(sender, failed(FailureCode.ABORTED_REMOTE)), r=(receiver, failed(FailureCode.ABORTED_LOCAL)))
    history.book.cut(sender, clear=True)
    second = history.open(P)
    with pytest.raises(Broken, match="nothing that happened is a reason"):
        history.see(s=(second, failed(FailureCode.ABORTED_REMOTE)))


def test_an_early_abort_ends_the_room_that_is_opened_against_it() -> None:
    history = History()
    receiver = history.open(D)
    history.book.cut(receiver, clear=True)
    history.see(r=(receiver, failed(FailureCode.ABORTED_LOCAL)))
    history.see(s=(history.open(P), failed(FailureCode.ABORTED_REMOTE)))
    with pytest.raises(Broken, match="nothing that happened is a reason"):
        history.see(s=(history.open(P), failed(FailureCode.ABORTED_REMOTE)))


def test_an_abort_is_seen_at_once() -> None:
    history = History()
    sender = history.open(P)
    history.book.cut(sender, clear=False)
    with pytest.raises(Broken, match="was aborted or cleared"):
        history.see(s=(sender, live(KVPoll.Bootstrapping)))


def test_a_number_that_is_taken() -> None:
    history = History()
    first, second = history.open(D), history.open(D)
    history.see(f=(first, live(KVPoll.Bootstrapping)), s=(second, failed(FailureCode.DUPLICATE_ROOM)))
    with pytest.raises(Broken, match="nothing that happened is a reason"):
        history.see(f=(first, failed(FailureCode.DUPLICATE_ROOM)))


def test_pages_that_are_released_stay_as_they_are() -> None:
    history = History()
    _, receiver = history.pair()
    history.book.cut(receiver, clear=True)
    history.see(r=(receiver, failed(FailureCode.ABORTED_LOCAL, safe=False)))
    history.memory.kv[0][0, :4] = 7
    history.see(r=(receiver, failed(FailureCode.ABORTED_LOCAL)))
    history.memory.kv[0][0] = 7
    with pytest.raises(Broken, match="nothing may land there"):
        history.see()


def test_what_is_live_is_not_released() -> None:
    history = History()
    sender, _ = history.pair()
    with pytest.raises(Broken, match="the room has not ended"):
        history.see(s=(sender, live(KVPoll.Transferring)._replace(release_safe=True)))


def test_released_is_final() -> None:
    history = History()
    sender = history.open(P)
    history.book.cut(sender, clear=False)
    history.see(s=(sender, failed(FailureCode.ABORTED_LOCAL)))
    with pytest.raises(Broken, match="was True and is False"):
        history.see(s=(sender, failed(FailureCode.ABORTED_LOCAL, safe=False)))


def test_both_sides_agree() -> None:
    history = History()
    sender, receiver = history.pair()
    history.see(s=(sender, live(KVPoll.Transferring)), r=(receiver, live(KVPoll.Transferring)))
    history.land()
    history.see(s=(sender, good()), r=(receiver, live(KVPoll.Transferring)))
    history.book.cut(receiver, clear=False)
    with pytest.raises(Broken, match="the other side of it, failed"):
        history.see(r=(receiver, failed(FailureCode.ABORTED_LOCAL)))


def test_the_bytes_of_another_room() -> None:
    history = History()
    _, receiver = history.pair()
    other = history.open(P, room=2)
    other.initialised, other.count = True, 1
    history.book.sent(other, [5], [np.full(16, 9, np.uint8)], calls=1, aux=None)
    history.memory.kv[0][0] = 9
    with pytest.raises(Broken, match="neither what may land there"):
        history.see(r=(receiver, live(KVPoll.Transferring)))


def test_after_a_crash_more_may_happen_and_nothing_else_lands() -> None:
    history = History()
    sender, receiver = history.pair()
    history.see(s=(sender, live(KVPoll.Transferring)), r=(receiver, live(KVPoll.Transferring)))
    history.book.crashed(D)
    history.see(s=(sender, failed(FailureCode.PEER_LOST)))
    assert history.book.waits() == []
    history.memory.kv[0][0] = 7
    with pytest.raises(Broken, match="nothing may land there"):
        history.see()


@pytest.mark.parametrize("side", [P, D])
def test_who_opens_against_an_abort_has_to_fail(side: Role) -> None:
    history = History()
    early = history.open(side.peer)
    history.book.cut(early, clear=True)
    history.see(e=(early, failed(FailureCode.ABORTED_LOCAL)))
    late = history.open(side)
    late.initialised = True
    history.see(s=(late, live(KVPoll.Bootstrapping)))
    assert any("was aborted before it was opened" in wait for wait in history.book.waits())
    again = history.open(side.peer)
    history.see(a=(again, live(KVPoll.Bootstrapping)))
    assert not any("was aborted before it was opened" in wait for wait in history.book.waits())
