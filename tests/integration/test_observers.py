"""What observers are told, in which order, and what one that misbehaves can't do."""

from __future__ import annotations

import threading
from collections import defaultdict
from time import monotonic

import pytest

from kv_core import FailureCode, InvalidConfig, KVPoll, Liveness, PeerEvent, Role, RoomEvent, RoomEventKind
from tests.support.memory import Shape
from tests.support.pair import BACKEND, QUICK, Pair, assert_failed, assert_success
from tests.support.waiting import wait_until

OPENED, POSTED, CONCLUDED, RELEASED = (
    RoomEventKind.OPENED, RoomEventKind.CHUNK_POSTED, RoomEventKind.CONCLUDED, RoomEventKind.RELEASED,
)  # fmt: skip


class Recorder:
    def __init__(self) -> None:
        self.rooms: dict[int, list[RoomEvent]] = defaultdict(list)
        self.peers: list[PeerEvent] = []
        self.threads: set[str] = set()

    def kv_room_event(self, event: RoomEvent) -> None:
        self.threads.add(threading.current_thread().name)
        self.rooms[event.room].append(event)

    def kv_peer_event(self, event: PeerEvent) -> None:
        self.peers.append(event)

    def kinds(self, room: int) -> list[RoomEventKind]:
        return [event.kind for event in self.rooms[room]]


class Raising:
    def __init__(self) -> None:
        self.calls = 0

    def kv_room_event(self, event: RoomEvent) -> None:
        self.calls += 1
        raise ValueError(f"no room for {event.kind}")

    def kv_peer_event(self, event: PeerEvent) -> None:
        raise SystemExit(3)


def test_events_of_good_rooms_come_in_order_with_the_metric():
    prefill, decode, raising = Recorder(), Recorder(), Raising()
    with Pair(prefill_observers=[raising, prefill], decode_observers=[raising, decode], config=QUICK) as pair:
        began = monotonic()
        for room in range(10, 13):
            receiver, sender = pair.receiver(room), pair.sender(room, [1, 2, 3])
            receiver.send_metadata([4, 5, 6])
            sender.send([1])
            sender.send([2, 3])
            assert_success(sender, receiver)
            metrics = sender.get_transfer_metric(), receiver.get_transfer_metric()
            for recorder, role, expected, metric in (
                (prefill, Role.PREFILL, [OPENED, POSTED, POSTED, CONCLUDED, RELEASED], metrics[0]),
                (decode, Role.DECODE, [OPENED, CONCLUDED, RELEASED], metrics[1]),
            ):
                wait_until(lambda r=recorder, n=room: RELEASED in r.kinds(n), "the last event")  # type: ignore[misc]
                events = recorder.rooms[room]
                assert [event.kind for event in events] == expected
                assert all((e.backend, e.role, e.room) == (BACKEND, role, room) for e in events)
                assert len({event.life for event in events}) == 1
                times = [event.time_s for event in events]
                assert times == sorted(times)
                assert began <= times[0] <= times[-1] <= monotonic()
                concluded = events[-2]
                assert (concluded.state, concluded.metric, concluded.failure) == (KVPoll.Success, metric, None)
                assert all(event.metric is None for event in events if event.kind is not CONCLUDED)
            sender.clear()
            receiver.clear()
        health = pair.prefill.health()["observers"]
        assert health["alive"]
        assert health["exceptions"] == raising.calls - sum(len(e) for e in decode.rooms.values()) + 1, "peer event too"
        assert [event.liveness for event in prefill.peers] == [Liveness.OK]
        assert threading.current_thread().name not in prefill.threads


def test_a_failed_room_concludes_once_with_its_failure():
    prefill, decode = Recorder(), Recorder()
    with Pair(prefill_observers=[prefill], decode_observers=[decode], config=QUICK) as pair:
        receiver, sender = pair.receiver(1), pair.sender(1, [1, 2])
        receiver.send_metadata([3, 4])
        wait_until(lambda: sender.poll() is KVPoll.WaitingForInput, "the names of the pages")
        sender.abort("the client hung up early")
        failures = assert_failed(sender), assert_failed(receiver)
        duplicate = pair.decode.create_receiver(pair.addr, -4)
        for recorder, failure in zip((prefill, decode), failures, strict=True):
            wait_until(lambda r=recorder: RELEASED in r.kinds(1), "the last event")  # type: ignore[misc]
            assert recorder.kinds(1) == [OPENED, CONCLUDED, RELEASED]
            assert recorder.rooms[1][1].failure == failure
            assert recorder.rooms[1][1].state is KVPoll.Failed
            assert recorder.rooms[1][1].metric is None or recorder.rooms[1][1].metric == sender.get_transfer_metric()
        wait_until(lambda: decode.rooms[-4], "the room that was none")
        [event] = decode.rooms[-4]
        assert event.kind is CONCLUDED
        assert event.failure is not None
        assert event.failure.code is FailureCode.INVALID_REQUEST
        duplicate.clear()


def test_the_end_of_a_peer_is_told():
    prefill, decode = Recorder(), Recorder()
    with Pair(prefill_observers=[prefill], decode_observers=[decode], config=QUICK) as pair:
        pair.good_room()
        pair.decode.close()
        wait_until(lambda: Liveness.DEAD in [event.liveness for event in prefill.peers], "the end of decode")
        # On a busy machine a probe may be late: suspect and back before the end is as right as nothing in between.
        between = {event.liveness for event in prefill.peers[1:-1]}
        assert (prefill.peers[0].liveness, prefill.peers[-1].liveness) == (Liveness.OK, Liveness.DEAD)
        assert between <= {Liveness.OK, Liveness.SUSPECT}
        assert "closed its manager" in prefill.peers[-1].reason
        assert len({event.peer for event in prefill.peers}) == 1


def test_a_slow_observer_holds_nobody_up():
    gate = threading.Event()

    class Slow:
        def kv_room_event(self, event: RoomEvent) -> None:
            gate.wait(60)

    with Pair(Shape(pages=16), prefill_observers=[Slow()], decode_observers=[Slow()], config=QUICK) as pair:
        try:
            for _ in range(20):
                pair.good_room()
            assert pair.prefill.health()["observers"]["waiting"] >= 20
        finally:
            gate.set()
        wait_until(lambda: pair.prefill.health()["observers"]["waiting"] == 0, "the backlog")


def test_warm_up_rooms_are_not_told():
    recorder = Recorder()
    with Pair(prefill_observers=[recorder], config=QUICK) as pair:
        sender = pair.prefill.create_sender("2.2.2.2:8998", 5)
        sender.init(0)
        sender.send([])
        assert sender.poll() is KVPoll.Success
        pair.good_room(6)
        wait_until(lambda: RELEASED in recorder.kinds(6), "the last event")
        assert recorder.rooms.get(5, []) == []


@pytest.mark.parametrize("wrong", [object(), 7, None])
def test_an_observer_that_observes_nothing_is_refused(wrong: object):
    with pytest.raises(InvalidConfig, match=r"observers\[0\]"), Pair(prefill_observers=[wrong]):
        raise AssertionError("not reached")
