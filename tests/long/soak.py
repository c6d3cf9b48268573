"""Ten thousand rooms through each way to end; then every counter is 0, and memory, threads and descriptors are flat.

    python -m tests.long.soak [--rooms 10000] [--ways NAME ...] [--seed S] [--json]

What a process holds is compared after a tenth of the rooms and after all of them, each time at rest. The tolerance:
no thread and no descriptor more (an idle connection may have been closed); memory has grown by less than 8 MiB, and by less
than 2 MiB (an allocator's noise) and 200 bytes for each room. Where it has grown by more, as many rooms follow once
again: an allocator keeps what a busy moment took and grows no further, a leak does.
"""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from time import monotonic
from typing import Any

from tests.support import command_line
from tests.support.long_flat import growth, memory_growth, one_arena, settled_usage
from tests.support.long_losses import LOSSES, LossScene
from tests.support.long_numbers import NUMBERS, NumberScene
from tests.support.long_ways import WAYS, WayScene

MIB = 1 << 20
WARM_UP_ROOMS = 10_000
SCENES: dict[str, Any] = {
    **{way.name: (WayScene, way) for way in WAYS},
    **{numbers.name: (NumberScene, numbers) for numbers in NUMBERS},
    **{loss.name: (LossScene, loss) for loss in LOSSES},
}
"""Name to what makes the scene."""


def one_way(name: str, rooms: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """So many rooms through one way; a row of the report, and what was not as it should be."""
    make, what = SCENES[name]
    first = max(1, rooms // 10)
    row: dict[str, Any] = {"way": name, "rooms": rooms}
    violations: list[str] = []
    began = monotonic()
    with ExitStack() as stack:
        try:
            scene = stack.enter_context(make(what, seed))
            scene.drive(first)
            violations += scene.rest()
            before = settled_usage()
            scene.drive(rooms - first)
            violations += scene.rest()
            after = settled_usage()
            if memory_growth(before, after, rooms - first):
                row["rooms"] += rooms - first
                scene.drive(rooms - first)
                violations += scene.rest()
                before, after = after, settled_usage()
            violations += growth(before, after, rooms - first) + scene.finish()
            row |= {
                "seconds": monotonic() - began, "MiB before": before["rss"] / MIB, "MiB after": after["rss"] / MIB,
                "B per room": (after["rss"] - before["rss"]) // max(1, rooms - first),
                "threads": f"{before['threads']} {after['threads']}", "fds": f"{before['fds']} {after['fds']}",
                **{side: dict(counts) for side, counts in scene.ended.items()},
            }  # fmt: skip
        except AssertionError as error:
            violations.append(str(error))
    row["violations"] = len(violations)
    return row, [f"{name}: {text}" for text in violations[:20]]


def run(rooms: int, seed: int, ways: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """So many rooms through each of these ways; rows, violations."""
    rows: list[dict[str, Any]] = []
    violations: list[str] = []
    one_arena()
    one_way(ways[0], min(rooms, WARM_UP_ROOMS), seed)  # whatever a process keeps from its first thousands of rooms on
    idle = settled_usage()
    for name in ways:
        row, found = one_way(name, rooms, seed)
        rows.append(row)
        violations += found
        print(f"{name}: {row.get('seconds', 0.0):.1f} s, {found[:3]}", file=sys.stderr, flush=True)
    left = settled_usage()
    violations += [
        f"after everything was closed: {left[name]} {name}, {idle[name]} in the beginning"
        for name in ("threads", "fds") if left[name] != idle[name]
    ]  # fmt: skip
    return rows, violations


def repeat(rooms: int, seed: int, ways: list[str]) -> str:
    """The command that repeats a run."""
    chosen = [] if ways == list(SCENES) else ["--ways", *(shlex.quote(way) for way in ways)]
    return command_line.repeat("tests.long.soak", seed, f"--rooms {rooms}", *chosen)


def main() -> int:
    """The command line."""
    parser = command_line.parser("Many rooms through each way to end")
    parser.add_argument("--rooms", type=int, default=10_000, help="through each way")
    parser.add_argument(
        "--ways", nargs="+", default=list(SCENES), choices=list(SCENES), metavar="WAY", help="which ones"
    )
    given = parser.parse_args()
    seed = command_line.chosen_seed(given.seed)
    rows, violations = run(given.rooms, seed, given.ways)
    command = repeat(given.rooms, seed, given.ways)
    return command_line.report("soak", rows, violations, command=command, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
