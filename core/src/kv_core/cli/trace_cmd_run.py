"""What ``kv-core trace`` does."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape

from kv_core.contract.failures import MessageError
from kv_core.observe.chrome import chrome_trace
from kv_core.observe.clocks import Placed, align
from kv_core.observe.recordings import RecordedRoom, Recordings, find, read

EXIT_DAMAGED = 1
EXIT_USAGE = 2
EXIT_EMPTY = 3


@dataclass(frozen=True)
class Window:
    """What to show: seconds since the first room began, and a room's number."""

    start_s: float | None = None
    stop_s: float | None = None
    room: int | None = None

    def select(self, rooms: list[RecordedRoom], offsets: Mapping[str, Placed]) -> list[RecordedRoom]:
        """Rooms of this number that were there in this time."""
        zero = min((room.start_s + offsets[room.clock].offset_s for room in rooms), default=0.0)

        def inside(room: RecordedRoom) -> bool:
            moved = offsets[room.clock].offset_s - zero
            return (
                (self.room is None or room.end.room == self.room)
                and (self.start_s is None or room.stop_s + moved >= self.start_s)
                and (self.stop_s is None or room.start_s + moved <= self.stop_s)
            )

        return [room for room in rooms if inside(room)]


def trace(files: Sequence[Path], output: Path, window: Window, *, as_json: bool) -> int:
    """The whole command; its exit status."""
    try:
        found = read(find(files))
        shown, result = build(found, window)
        if shown:
            write(result, output)
    except (MessageError, OSError) as error:
        return _complain(str(error), EXIT_USAGE, as_json=as_json)
    if not shown:
        text = f"no room to show: {len(found.rooms)} were recorded, none of them in the window"
        return _complain(text if found.rooms else "no room was recorded", EXIT_EMPTY, as_json=as_json)
    status = EXIT_DAMAGED if found.damaged else 0
    summary = {
        "output": str(output), "rooms": len(shown), "failed": sum(room.end.failure is not None for room in shown),
        "sides": len({room.end.instance for room in shown}), "events": len(result["traceEvents"]),
        "clocks": result["otherData"]["clocks"], "damaged_lines": found.damaged, "torn_lines": found.torn,
        "exit_status": status,
    }  # fmt: skip
    if as_json:
        sys.stdout.write(json.dumps(summary) + "\n")
    else:
        _print(Console(), summary)
    return status


def build(found: Recordings, window: Window) -> tuple[list[RecordedRoom], dict[str, Any]]:
    """(the rooms in the window, the trace of them)."""
    offsets = align(found.clocks, found.rooms)
    shown = window.select(found.rooms, offsets)
    if len(shown) < len(found.rooms):  # clocks drift: what was said in the window says most about it
        offsets = align(found.clocks, shown)
    return shown, chrome_trace(shown, offsets)


def write(result: dict[str, Any], output: Path) -> None:
    """Write a trace. Raises ``OSError``."""
    output.write_bytes(msgspec.json.encode(result))


def _print(console: Console, summary: dict[str, Any]) -> None:
    text = "{output}: {rooms} rooms of {sides} sides, {failed} of them failed".format(**summary)
    console.print(escape(text), soft_wrap=True)
    methods = sorted({clock["method"] for clock in summary["clocks"].values()})
    worst = [clock["uncertainty_us"] for clock in summary["clocks"].values()]
    sure = "unknown" if None in worst else f"at most {max(worst):.0f} us"
    console.print(f"clocks: {', '.join(methods)}; off by: {sure}")
    if summary["damaged_lines"]:
        console.print(f"[red]{summary['damaged_lines']} lines were damaged and left out[/]")
    console.print("open it at https://ui.perfetto.dev or in chrome://tracing", soft_wrap=True)


def _complain(text: str, status: int, *, as_json: bool) -> int:
    Console(stderr=True).print(f"[red]{escape(text)}[/]", soft_wrap=True)
    if as_json:
        sys.stdout.write(json.dumps({"error": text, "exit_status": status}) + "\n")
    return status
