"""Failed rooms in the log: one JSON line each with the history, never a flood, never on the engine's thread."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

import pytest

from core.tests.protocol.support import Bench
from kv_core.contract.enums import FailureCode, FailureStage, KVPoll, Role, Side
from kv_core.contract.failures import Failure
from kv_core.contract.observers import Observers
from kv_core.contract.records import RoomEvent, RoomEventKind
from kv_core.runtime.flight_log import BURST, LOGGER, FlightLog
from kv_core.runtime.observing import ObserverThread

pytestmark = pytest.mark.filterwarnings("error")


def failed(number: int, time_s: float, code: FailureCode = FailureCode.TIMEOUT) -> RoomEvent:
    failure = Failure(FailureStage.TRANSFER, code, f"room {number} did not move", Side.FABRIC, True, "me", "you")
    return RoomEvent(
        RoomEventKind.CONCLUDED, "test", Role.PREFILL, number, number, KVPoll.Failed, time_s, failure=failure,
        history=((time_s - 0.5, "opened"), (time_s, "failed", "transfer", code.value, "fabric", "did not move")),
        instance="p.1",
    )  # fmt: skip


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == LOGGER]


def test_a_line_says_all_of_it(caplog: pytest.LogCaptureFixture):
    bench = Bench()
    prefill, decode = bench.pair()
    source, _ = bench.bound(prefill, decode, 5, 7)
    prefill.send(source, 1)
    chunk = prefill.claim()
    bench.now += 0.25
    prefill.do(prefill.machine.chunk_failed, chunk, "the cable is out", quiescent=True)
    (event,) = prefill.ends(source)
    with caplog.at_level(logging.INFO, LOGGER):
        FlightLog().take(event)
    (line,) = lines(caplog)
    assert caplog.records[0].levelno == logging.WARNING
    assert "\n" not in caplog.records[0].getMessage()
    assert {key: line[key] for key in ("event", "room", "life", "role", "stage", "code", "side", "message")} == {
        "event": "room_failed", "room": 5, "life": source.life, "role": "prefill", "stage": "transfer",
        "code": "transport_error", "side": "fabric", "message": "the cable is out",
    }  # fmt: skip
    assert (line["instance"], line["backend"]) == ("p.1", "test")
    assert line["peer"].startswith("d.1 at ")
    assert line["age_ms"] == 250.0
    assert [moment["what"] for moment in line["history"]][-3:] == ["phase", "chunk_failed", "failed"]
    assert line["history"][-1]["ms"] == 250.0
    assert [moment["ms"] for moment in line["history"]] == sorted(moment["ms"] for moment in line["history"])


def test_ten_thousand_at_once_are_no_flood(caplog: pytest.LogCaptureFixture):
    log = FlightLog()
    with caplog.at_level(logging.INFO, LOGGER):
        for number in range(10_000):
            log.take(
                failed(number, 100.0 + number * 1e-6, FailureCode.PEER_LOST if number % 2 else FailureCode.TIMEOUT)
            )
        assert log.pending
        log.flush()
        log.flush()
    found = lines(caplog)
    assert len(found) == BURST + 1
    assert [line["room"] for line in found[:-1]] == list(range(BURST))
    rest = (10_000 - BURST) // 2
    assert found[-1]["event"] == "rooms_failed"
    assert found[-1]["suppressed"] == {"transfer/timeout": rest, "transfer/peer_lost": rest}
    assert not log.pending


def test_the_next_line_says_what_was_left_out(caplog: pytest.LogCaptureFixture):
    log = FlightLog(burst=2, period_s=10.0)
    with caplog.at_level(logging.INFO, LOGGER):
        for number, time_s in enumerate((0.0, 0.0, 1.0, 9.0, 12.0, 13.0)):
            log.take(failed(number, time_s))
    found = lines(caplog)
    assert [line["room"] for line in found] == [0, 1, 4]
    assert [line.get("suppressed") for line in found] == [None, None, {"transfer/timeout": 2}]


def test_a_room_that_nobody_wants_any_more_is_no_warning(caplog: pytest.LogCaptureFixture):
    log = FlightLog()
    for code in (FailureCode.ABORTED_LOCAL, FailureCode.ABORTED_REMOTE, FailureCode.CLOSED):
        with caplog.at_level(logging.WARNING, LOGGER):
            log.take(failed(1, 1.0, code))
        assert lines(caplog) == []
    assert not log.pending
    with caplog.at_level(logging.INFO, LOGGER):
        log.take(failed(1, 1.0, FailureCode.ABORTED_LOCAL))
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_what_was_left_out_is_said_although_nothing_comes_after_it(caplog: pytest.LogCaptureFixture):
    thread = ObserverThread(Observers(), "observers", FlightLog(burst=2))
    thread.start()
    try:
        with caplog.at_level(logging.INFO, LOGGER):
            for number in range(5):
                thread.put(failed(number, 100.0))
                thread.put(replace(failed(number, 100.0), kind=RoomEventKind.OPENED, failure=None))
            deadline = monotonic() + 60
            while len(lines(caplog)) < 3:
                assert monotonic() < deadline, lines(caplog)
                sleep(0.01)
    finally:
        assert thread.close(60)
    assert [line["event"] for line in lines(caplog)] == ["room_failed", "room_failed", "rooms_failed"]
    assert lines(caplog)[-1]["suppressed"] == {"transfer/timeout": 3}
