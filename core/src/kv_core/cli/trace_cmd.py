"""``kv-core trace``: recordings of the flight recorder as a trace to look at. Options only; the work: ``trace_cmd_run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

# Typer evaluates these annotations, and on Python 3.10 it knows Optional[...] better than X | None.
Recordings = Annotated[
    list[Path],
    typer.Argument(metavar="FILE|DIR...", help="Recordings, or folders of them; those of both sides belong together."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write; a file that is there is replaced.")]
From = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--from", help="Rooms that were there after so many seconds since the first one.", show_default="0"),
]
To = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--to", help="Rooms that were there before so many seconds.", show_default="the end"),
]
Room = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Only rooms of this number.", show_default="all"),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else.")]


def trace(
    files: Recordings,
    output: Output = Path("trace.json"),
    start: From = None,
    stop: To = None,
    room: Room = None,
    as_json: JsonFlag = False,
) -> None:
    """Write what the flight recorder has recorded as a trace, for https://ui.perfetto.dev or chrome://tracing.

    Exit status: 0 written, 1 written but some lines were damaged, 2 bad arguments, 3 no room to show.
    """
    from kv_core.cli import trace_cmd_run as work  # noqa: PLC0415

    window = work.Window(start, stop, room)
    raise typer.Exit(work.trace(files, output, window, as_json=as_json))
