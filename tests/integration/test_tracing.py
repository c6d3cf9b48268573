"""Histories, the flight record, the log of failed rooms and traces across processes, through the public face."""

from __future__ import annotations

import json
import logging
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from kv_core import CommonKVManager, FlightRecorder, KVPoll, RoomEvent, RoomEventKind
from kv_core.cli.trace_cmd_run import Window, build
from kv_core.contract.observers import only
from kv_core.observe.recordings import read
from kv_core.runtime.flight_log import LOGGER
from tests.support.pair import QUICK, Pair, assert_failed, assert_success
from tests.support.traced_prefill import Keeper, exporting, ids, serve
from tests.support.waiting import wait_until

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


def record_of(manager: Any, room: int) -> list[dict[str, Any]]:
    assert isinstance(manager, CommonKVManager)
    entries = manager.flight_record(room)
    json.dumps(entries)
    return entries


def whats(entry: dict[str, Any]) -> list[str]:
    return [moment.get("phase", moment["what"]) for moment in entry["history"]]


def test_an_operator_sees_where_a_stuck_room_stands():
    with Pair() as pair:
        receiver, sender = pair.receiver(1), pair.sender(1, [1, 2])
        receiver.send_metadata([3, 4])
        wait_until(lambda: receiver.poll() is KVPoll.Transferring, "the pages to be taken")
        sender.send([1])
        wait_until(lambda: "landed" in whats(record_of(pair.prefill, 1)[0]), "the first chunk")
        (prefill,), (decode,) = record_of(pair.prefill, 1), record_of(pair.decode, 1)
        assert (prefill["phase"], decode["phase"]) == ("moving", "moving")
        assert not prefill["released"]
        assert whats(prefill)[-1] == "landed"
        assert whats(decode)[-2:] == ["bound", "moving"]
        assert prefill["age_s"] > 0
        assert record_of(pair.prefill, 2) == []
        sender.send([2])
        assert_success(sender, receiver)
        (prefill,) = record_of(pair.prefill, 1)
        assert (prefill["phase"], prefill["released"], whats(prefill)[-1]) == ("success", True, "released")
        sender.clear()
        receiver.clear()
        (cleared,) = record_of(pair.prefill, 1)
        assert cleared["history"] == prefill["history"]


def test_a_failed_room_is_one_line_in_the_log_of_each_side(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, LOGGER), Pair(config=QUICK | {"waiting_timeout_s": 0.4}) as pair:
        assert pair.prefill.health()["observers"]["alive"]
        receiver, sender = pair.receiver(7), pair.sender(7, [1, 2])
        receiver.send_metadata([3, 4])
        failures = assert_failed(sender), assert_failed(receiver)
        wait_until(lambda: len([r for r in caplog.records if r.name == LOGGER]) == 2, "both lines")
        sender.clear()
        receiver.clear()
    records = [record for record in caplog.records if record.name == LOGGER]
    assert all(record.threadName and record.threadName.endswith("-observers") for record in records)
    lines = {json.loads(record.getMessage())["role"]: json.loads(record.getMessage()) for record in records}
    assert set(lines) == {"prefill", "decode"}
    for line, failure in zip((lines["prefill"], lines["decode"]), failures, strict=True):
        assert (line["room"], line["stage"], line["code"]) == (7, failure.stage.value, failure.code.value)
        assert line["message"] == failure.message
        assert line["history"][0]["what"] == "opened"
        assert line["history"][-1]["what"] == "failed"


def test_off_there_is_no_history_no_line_and_no_thread(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, LOGGER), Pair(config=QUICK | {"flight_recorder": 0}) as pair:
        assert "observers" not in pair.prefill.health()
        pair.good_room(1)
        sender = pair.sender(2, [1])
        sender.abort()
        assert_failed(sender)
        assert record_of(pair.prefill, 1) == record_of(pair.prefill, 2) == []
        sender.clear()
    assert [record for record in caplog.records if record.name == LOGGER] == []


def test_without_observers_only_failures_reach_the_dispatcher():
    with Pair(config=QUICK) as pair:
        for _ in range(5):
            pair.good_room()
        health = pair.prefill.health()["observers"]
        assert (health["waiting"], health["dropped"], health["exceptions"]) == (0, 0, 0)


@pytest.mark.parametrize("wrong", ["nonsense", PARENT.upper(), "", 7])
def test_a_bad_traceparent_fails_no_room(wrong: Any, caplog: pytest.LogCaptureFixture):
    keeper = Keeper()
    with Pair(config=QUICK, prefill_observers=[keeper]) as pair:
        for room in (1, 2):
            receiver = pair.receiver(room)
            sender = pair.prefill.create_sender(pair.addr, room, traceparent=wrong)
            sender.init(1)
            receiver.send_metadata([3])
            sender.send([1])
            assert_success(sender, receiver)
            sender.clear()
            receiver.clear()
        assert pair.prefill.snapshot()["dropped"]["bad_traceparents"] == 2
    assert len([record for record in caplog.records if "W3C" in record.getMessage()]) == 1
    assert {event.traceparent for event in keeper.events} == {None}


def test_warm_up_rooms_take_one_too():
    with Pair() as pair:
        sender = pair.prefill.create_sender("2.2.2.2:8998", 5, traceparent=PARENT)
        receiver = pair.decode.create_receiver("2.2.2.2:8998", 5, traceparent=PARENT)
        sender.init(0)
        sender.send([])
        assert sender.poll() is KVPoll.Success
        receiver.clear()


def test_a_trace_crosses_to_another_process(tmp_path: Path):
    """The id that decode's engine named is on prefill's spans over there, and both recordings make one trace."""
    exporter, spans = exporting()
    keeper = Keeper()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    recordings = [tmp_path / f"{role}.jsonl" for role in ("prefill", "decode")]
    with FlightRecorder(recordings[1]) as recorder, Pair(decode_observers=[spans, recorder, keeper]) as pair:
        pair.prefill.close()
        rooms = [101, 102, 103]
        process = context.Process(target=serve, args=(there, pair.addr, rooms, str(recordings[0])))
        process.start()
        there.close()
        assert here.poll(60), "the spawned process says nothing"
        assert here.recv() == "ready"
        for room in rooms:
            trace = PARENT if room != 103 else None
            receiver = pair.decode.create_receiver(pair.addr, room, traceparent=trace)
            receiver.init()
            receiver.send_metadata([4, 5, 6])
            assert_success(receiver)
            receiver.clear()
        assert here.poll(60), "the spawned process does not come to an end"
        theirs, events = here.recv()
        here.send("thanks")
        process.join(60)
        assert process.exitcode == 0
        process.close()
    rooms_there = [span for span in theirs if span[0] == "kv_core.prefill"]
    assert [span[1:] for span in rooms_there[:2]] == [(TRACE_ID, SPAN_ID)] * 2
    assert rooms_there[2][1] != TRACE_ID
    assert rooms_there[2][2] == ""
    chunks = [span for span in theirs if span[0] == "kv_core.chunk"]
    assert [span[1] for span in chunks[:4]] == [TRACE_ID] * 4
    mine = [span for span in ids(exporter) if span[0] == "kv_core.decode"]
    assert [span[1:] for span in mine[:2]] == [(TRACE_ID, SPAN_ID)] * 2
    check_events(events, keeper.events)
    found = read(recordings)
    shown, trace_made = build(found, Window())
    assert sorted(room.end.room for room in shown) == sorted(rooms * 2)
    assert len([event for event in trace_made["traceEvents"] if event["ph"] == "s"]) == 5 * len(rooms)
    assert {clock["method"] for clock in trace_made["otherData"]["clocks"].values()} == {"same clock"}


def check_events(prefill: list[RoomEvent], decode: list[RoomEvent]) -> None:
    """Events came through a pipe, with their histories; each side knows the trace by the time that its room ends."""
    for events in (prefill, decode):
        ends = [event for event in events if event.kind is RoomEventKind.CONCLUDED]
        assert [event.traceparent for event in ends] == [PARENT, PARENT, None]
        assert all(event.history[0][1] == "opened" for event in ends)
        assert len({event.instance for event in ends}) == 1
    opened = [event for event in prefill if event.kind is RoomEventKind.OPENED]
    assert {event.history for event in opened} == {()}


def test_events_that_no_observer_wants_are_not_told():
    class Ends:
        """Wants the ends of rooms alone, and keeps whatever comes."""

        def __init__(self) -> None:
            self.kinds: list[RoomEventKind] = []

        @only(RoomEventKind.CONCLUDED)
        def kv_room_event(self, event: RoomEvent) -> None:
            self.kinds.append(event.kind)

    alone, beside, keeper = Ends(), Ends(), Keeper()
    with Pair(config=QUICK, prefill_observers=[alone], decode_observers=[beside, keeper]) as pair:
        pair.good_room()
        wait_until(lambda: alone.kinds and len(keeper.events) == 3, "the ends")
    assert alone.kinds == [RoomEventKind.CONCLUDED]
    assert beside.kinds == [event.kind for event in keeper.events]


def test_a_log_that_raises_ends_nothing(monkeypatch: pytest.MonkeyPatch):
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no space left")

    handler = Broken()
    logging.getLogger(LOGGER).addHandler(handler)
    monkeypatch.setattr(logging.getLogger(LOGGER), "propagate", False)
    monkeypatch.setattr(logging.getLogger(LOGGER), "level", logging.INFO)
    try:
        with Pair(config=QUICK) as pair:
            for room in (1, 2):
                sender = pair.sender(room, [1])
                sender.abort()
                assert_failed(sender)
                sender.clear()
            wait_until(lambda: pair.prefill.health()["observers"]["exceptions"] == 2, "both lines to fail")
            assert pair.prefill.health()["observers"]["alive"]
    finally:
        logging.getLogger(LOGGER).removeHandler(handler)
