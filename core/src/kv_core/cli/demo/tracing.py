"""``--trace``: each rank's process records its own rooms, as in a deployment; the command makes one trace of the recordings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from kv_core.contract.enums import Role

if TYPE_CHECKING:
    from typing_extensions import Self

    from kv_core.observe.flight import FlightRecorder

RECORDINGS = "*.jsonl*"
TRACE = "trace.json"
MOMENTS_PER_CHUNK = 3
OTHER_MOMENTS = 24
"""What a room's history needs beside its chunks."""


def prepare(folder: Path) -> None:
    """Make the folder. Raises ``ValueError`` if it can't be had, or has recordings of another run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--trace {folder}: no folder can be made there ({error}): name another one") from error
    if any(folder.glob(RECORDINGS)):
        raise ValueError(f"--trace {folder}: has recordings of another run: name a new folder, or an empty one")


def moments(chunks: int) -> int:
    """How long the rooms' histories have to be for every chunk to be seen."""
    return OTHER_MOMENTS + MOMENTS_PER_CHUNK * chunks


def finish(folder: Path) -> str:
    """Make the trace of what the ranks recorded; where it is, or an empty text if no room was."""
    from kv_core.cli.trace_cmd_run import Window, build, write  # noqa: PLC0415
    from kv_core.observe.recordings import read  # noqa: PLC0415

    shown, trace = build(read(sorted(folder.glob(RECORDINGS))), Window())
    if not shown:
        return ""
    write(trace, folder / TRACE)
    return str(folder / TRACE)


class RankTrace:
    """The recording of one rank's process; without a folder there is none."""

    def __init__(self, role: Role, folder: str | None) -> None:
        self._open = ExitStack()
        self._recorder: FlightRecorder | None = None
        if folder is not None:
            from kv_core.observe.flight import FlightRecorder  # noqa: PLC0415

            path = Path(folder) / f"{role.value}-{os.getpid()}.jsonl"
            self._recorder = self._open.enter_context(FlightRecorder(path))

    @property
    def observers(self) -> Sequence[object]:
        """What the manager's events are told."""
        return () if self._recorder is None else (self._recorder,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
