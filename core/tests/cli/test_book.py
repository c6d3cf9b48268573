"""The router's book, and the record of a kill."""

from __future__ import annotations

import pytest

from kv_core.cli.demo.book import DIED, WRONG, Attempt, Book
from kv_core.cli.demo.killing import KillRecord
from kv_core.cli.demo.lines import Ended
from kv_core.contract.enums import Role

LOST = "transfer/peer_lost"


def book(requests: int = 2, tries: int = 1) -> Book:
    return Book(requests, tries, seed=5)


def good(room: int) -> Ended:
    return Ended(room, nbytes=10, latency_s=0.5)


def bad(room: int, reason: str = LOST) -> Ended:
    return Ended(room, reason=reason, message="it broke")


def test_a_request_is_over_when_both_sides_have_said_so() -> None:
    tested = book(1)
    room = tested.next(0.0).room
    assert tested.ended(Role.DECODE, good(room)) is None
    assert not tested.done
    over = tested.ended(Role.PREFILL, good(room))
    assert over is not None
    assert over.reason == ""
    assert tested.done
    assert (tested.totals.succeeded, tested.totals.bytes_sent, tested.totals.bytes_verified) == (1, 10, 10)


def test_rooms_are_never_used_twice() -> None:
    tested = book(500)
    assert len({tested.next(0.0).room for _ in range(500)}) == 500


def test_without_retries_a_failure_is_final_and_counted_by_the_reason_of_decode() -> None:
    tested = book(1)
    room = tested.next(0.0).room
    tested.ended(Role.PREFILL, bad(room, "transfer/aborted_remote"))
    tested.ended(Role.DECODE, bad(room))
    assert tested.done
    assert dict(tested.totals.failed_attempts) == {LOST: 1}
    assert (tested.totals.gave_up, tested.totals.succeeded, tested.totals.bytes_verified) == (1, 0, 0)


def test_a_failed_request_is_tried_again_in_another_room_and_not_for_ever() -> None:
    tested = book(1, tries=3)
    rooms = []
    while not tested.done:
        room = tested.next(0.0).room
        rooms.append(room)
        for role in Role:
            tested.ended(role, bad(room))
    assert len(set(rooms)) == len(rooms) == 3
    assert tested.totals.gave_up == 1


def test_wrong_bytes_are_never_tried_again() -> None:
    tested = book(1, tries=3)
    room = tested.next(0.0).room
    tested.ended(Role.PREFILL, good(room))
    over = tested.ended(Role.DECODE, Ended(room, nbytes=10, wrong_bytes=4))
    assert over is not None
    assert over.reason == WRONG
    assert tested.done
    assert (tested.totals.wrong_bytes, tested.totals.bytes_verified, tested.totals.gave_up) == (4, 0, 1)


def test_news_of_rooms_that_are_over_is_ignored() -> None:
    tested = book(1)
    assert tested.ended(Role.DECODE, good(12345)) is None
    assert tested.totals.succeeded == 0


@pytest.mark.parametrize(("survivor", "reason"), [(bad, LOST), (good, DIED)])
def test_without_the_word_of_decode_nothing_has_succeeded(survivor, reason: str) -> None:
    tested = book(1)
    room = tested.next(0.0).room
    assert tested.rank_died(Role.DECODE) == []
    over = tested.ended(Role.PREFILL, survivor(room))
    assert over is not None
    assert over.reason == reason
    assert over.message


def test_the_word_of_decode_is_enough_if_prefill_died() -> None:
    tested = book(1)
    room = tested.next(0.0).room
    tested.ended(Role.DECODE, good(room))
    (over,) = tested.rank_died(Role.PREFILL)
    assert over.reason == ""
    assert tested.totals.bytes_sent == tested.totals.bytes_verified == 10


def started(requests: int, tested: Book, flying: int) -> tuple[KillRecord, list[Attempt]]:
    """A record, and attempts in flight after a third of the requests succeeded."""
    record = KillRecord.planned(Role.PREFILL, requests)
    for _ in range(record.after):
        room = tested.next(0.0).room
        for role in Role:
            tested.ended(role, good(room))
    return record, [tested.next(0.0) for _ in range(flying)]


def test_a_rank_is_killed_when_rooms_are_at_work() -> None:
    tested = book(30, tries=2)
    record, flying = started(30, tested, flying=8)
    assert record.after == 10
    assert not record.is_due(tested, 8, just_met=True)
    flying[0].met = flying[1].met = True
    assert record.is_due(tested, 8, just_met=True)
    assert not record.is_due(tested, 8, just_met=False), "all bytes may have landed by now"
    tested.ended(Role.DECODE, good(flying[0].room))
    assert not record.is_due(tested, 8, just_met=True), "one has ended on the survivor's side"
    record.killed(1, 2, tested, now=1.0)
    flying[2].met = flying[3].met = True
    assert not record.is_due(tested, 8, just_met=True), "once is enough"


def test_a_rank_is_killed_at_the_last_moment_if_there_was_no_better_one() -> None:
    tested = book(3, tries=2)
    record, _ = started(3, tested, flying=1)
    assert not record.is_due(tested, 8, just_met=False)
    tested.next(0.0)
    assert record.is_due(tested, 8, just_met=False)


def test_a_kill_knows_which_rooms_it_hit_and_when_that_was_noticed() -> None:
    tested = book(6, tries=2)
    record, (hit, spared, unmet) = started(6, tested, flying=3)
    record.killed(1, 2, tested, now=10.0)
    assert not record.passed, "rooms are still open, and the rank is not back"
    tested.rank_died(Role.PREFILL)
    ends = [(hit, bad(hit.room), 10.4), (spared, good(spared.room), 10.1)]
    ends += [(unmet, bad(unmet.room, "bootstrap/aborted_local"), 12.0)]
    for attempt, end, now in ends:
        assert tested.ended(Role.DECODE, end) is attempt
        record.over(attempt, now)
    record.ready_at = 11.0
    later = tested.next(13.0)
    for role in Role:
        tested.ended(role, good(later.room))
    record.over(later, 13.0)
    found = record.as_dict()
    assert record.passed
    assert (found["affected_rooms"], found["noticed_rooms"]) == (2, 1)
    assert found["max_detect_s"] == pytest.approx(0.4)
    assert found["restart_s"] == pytest.approx(1.0)
    assert found["first_success_after_restart_s"] == pytest.approx(2.0)
    assert found["affected_by_reason"] == {LOST: 1, "bootstrap/aborted_local": 1}
