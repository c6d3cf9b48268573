"""The results file: JSON lines, one writer, each line with the run's id. Read while it grows, and never another run's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kv_conformance.catalog import Check
from kv_conformance.outcomes import Outcome

KINDS = ("session", "begun", "ended", "died", "finished")


class WrongResults(Exception):
    """The file can't be this run's results: another run's, or damaged. Nothing is known then."""


class Writer:
    """Appends records, each by one write, so that a process which dies leaves whole lines."""

    def __init__(self, path: Path, run: str) -> None:
        self._run = run
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, kind: str, **fields: object) -> None:
        """Append one record; does nothing once closed."""
        if self._file >= 0:
            line = json.dumps({"kind": kind, "run": self._run, **fields}, ensure_ascii=True)
            os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        """No more records."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Reader:
    """Reads what was appended since the last time. A last line without its end is left for the next time."""

    def __init__(self, path: Path, run: str) -> None:
        self._path = path
        self._run = run
        self._offset = 0

    def records(self) -> Iterator[dict[str, Any]]:
        """New records. Raises ``WrongResults``."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield self._checked(line)

    def _checked(self, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise WrongResults(f"{self._path} has a line that is no JSON ({error}): {line[:80]!r}") from None
        if not isinstance(record, dict) or record.get("kind") not in KINDS:
            raise WrongResults(f"{self._path} has a line that is no record of kv-conformance: {line[:80]!r}")
        if record.get("run") != self._run:
            raise WrongResults(f"{self._path} has a record of run {record.get('run')!r}, expected run {self._run!r}")
        return record


@dataclass(frozen=True)
class Ended:
    """What became of one check."""

    outcome: Outcome
    detail: str = ""
    longrepr: str = ""
    duration_s: float = 0.0
    fabrics: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Results:
    """What is known of a run so far. open: checks that have begun and not ended, by node id."""

    subject: dict[str, Any] | None = None
    ended: dict[str, Ended] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)
    finished: bool = False

    def take(self, record: dict[str, Any], ids: Mapping[str, str]) -> str:
        """Take in one record; the id of the check that it ended, or "". ``ids``: of the checks, by ``key_of``."""
        kind = record["kind"]
        if kind == "session":
            self.subject = record["subject"]
        elif kind == "finished":
            self.finished = True
        else:
            node = str(record["node"])
            check = record.get("check") or ids.get(key_of(node), "")
            if not check:
                return ""  # somebody's test that is no check
            if kind == "begun":
                self.open[node] = check
                return ""
            self.open.pop(node, None)
            ended = _died(record) if kind == "died" else _ended(record)
            if check in self.ended:
                ended = Ended(
                    Outcome.HARNESS_ERROR,
                    f"ran more than once ({self.ended[check].outcome.value}, then {ended.outcome.value}): no plugin of "
                    "pytest may repeat checks",
                )
            self.ended[check] = ended
            return str(check)
        return ""


def key_of(node: str) -> str:
    """What of a node id stays the same wherever the suite is installed: the module's and the function's name."""
    path, _, name = node.partition("::")
    return f"{Path(path).stem}:{name}"


def ids_of(checks: Iterable[Check]) -> dict[str, str]:
    """The ids of checks by their ``key_of``."""
    return {check.where.rpartition(".")[2]: check.id for check in checks}


def _ended(record: dict[str, Any]) -> Ended:
    return Ended(
        Outcome(record["outcome"]), record["detail"], record["longrepr"], record["duration_s"],
        tuple(record["fabrics"]), tuple(record["notes"]),
    )  # fmt: skip


def _died(record: dict[str, Any]) -> Ended:
    return Ended(Outcome.FAILED, f"the process died in this check: {record['detail']}")
