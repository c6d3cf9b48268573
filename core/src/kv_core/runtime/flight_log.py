"""Failed rooms in the log: one line for each, a JSON object with the room's history. Never a flood."""

from __future__ import annotations

import json
import logging
from collections import Counter
from typing import Any

from kv_core.contract.enums import FailureCode
from kv_core.contract.moments import timeline
from kv_core.contract.records import RoomEvent

LOGGER = "kv_core.flight"
BURST = 20
"""Rooms that may be logged at once."""
PERIOD_S = 1.0
"""One more in this time."""
QUIET = (FailureCode.ABORTED_LOCAL, FailureCode.ABORTED_REMOTE, FailureCode.CLOSED)
"""Somebody did not want the room any more, and nothing is wrong: INFO. Everything else: WARNING."""


class FlightLog:
    """Logs failed rooms, ``burst`` at once and one in ``period_s`` from then on; the others are counted, and the count is
    said with the next line, or by ``flush``.

    Time is that of the events. For one thread, which is not the engine's: a log may be a slow disk.
    """

    def __init__(self, burst: int = BURST, period_s: float = PERIOD_S) -> None:
        self._logger = logging.getLogger(LOGGER)
        self._burst = burst
        self._period_s = period_s
        self._allowed = float(burst)
        self._refilled_at: float | None = None
        self._suppressed: Counter[str] = Counter()
        self._about: dict[str, Any] = {}

    @property
    def pending(self) -> bool:
        """Whether there are rooms that nobody has been told of."""
        return bool(self._suppressed)

    def take(self, event: RoomEvent) -> None:
        """A room has failed."""
        failure = event.failure
        if failure is None:
            return
        level = logging.INFO if failure.code in QUIET else logging.WARNING
        if not self._logger.isEnabledFor(level):
            return
        self._about = {"role": event.role.value, "backend": event.backend, "instance": event.instance}
        if self._may(event.time_s):
            line = self._line(event)
            if self._suppressed:
                line["suppressed"] = self._taken()
            self._logger.log(level, "%s", _json(line))
        else:
            self._suppressed[f"{failure.stage.value}/{failure.code.value}"] += 1

    def flush(self) -> None:
        """Say how many rooms were not logged, if any."""
        if self._suppressed:
            text = {"event": "rooms_failed", **self._about, "suppressed": self._taken()}
            self._logger.warning("%s", _json(text))

    def _may(self, now: float) -> bool:
        if self._refilled_at is not None:
            earned = max(0.0, now - self._refilled_at) / self._period_s
            self._allowed = min(float(self._burst), self._allowed + earned)
        self._refilled_at = now
        if self._allowed < 1.0:
            return False
        self._allowed -= 1.0
        return True

    def _taken(self) -> dict[str, int]:
        taken, self._suppressed = dict(self._suppressed), Counter()
        return taken

    def _line(self, event: RoomEvent) -> dict[str, Any]:
        failure, moments = event.failure, event.history
        assert failure is not None, "only failed rooms come here"
        start = moments[0][0] if moments else event.time_s
        return {
            "event": "room_failed", "room": event.room, "life": event.life, **self._about, "stage": failure.stage.value,
            "code": failure.code.value, "side": failure.side.value, "retryable": failure.retryable,
            "message": failure.message, "origin": failure.origin, "peer": failure.peer, "traceparent": event.traceparent,
            "age_ms": round((event.time_s - start) * 1e3, 3), "history": timeline(moments, start),
        }  # fmt: skip


def _json(line: dict[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":"))
