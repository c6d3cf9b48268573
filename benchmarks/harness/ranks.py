"""The processes as the benchmark sees them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from benchmarks.harness.figures import MachineLoad, cpu_seconds_of
from benchmarks.harness.work import Work

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).resolve().parents[2]
END_S = 20.0


class RankFailed(RuntimeError):
    """A command failed in one of the processes."""


class RankProcess:
    """One process: commands and answers are lines of JSON."""

    def __init__(self, role: str, backend: str, environment: Mapping[str, str]) -> None:
        self.role = role
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.harness.rank_main", role, backend],
            cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, do: str, **arguments: Any) -> None:
        """Give a command; the next ``answer`` belongs to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What the command returned."""
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline() or '{"error": "the process has ended"}')
        if "error" in answer:
            raise RankFailed(f"a command failed in the {self.role} process:\n{answer['error']}")
        return answer["ok"]

    def call(self, do: str, **arguments: Any) -> Any:
        """A command and its answer."""
        self.ask(do, **arguments)
        return self.answer()

    def cpu_seconds(self) -> float:
        """Processor time so far, also of a frozen process."""
        return cpu_seconds_of(self._process.pid)

    def freeze(self) -> None:
        """SIGSTOP; returns when the process has stopped."""
        self._process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise RankFailed(f"the {self.role} process ended instead of stopping: {status}")

    def thaw(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def end(self, *, kill: bool) -> None:
        """Let it end, frozen or not, by force if it must be, and wait for it."""
        if kill:
            self._process.kill()
        else:
            self.thaw()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            kill = True  # it has ended before; its status is still to be fetched
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_S)
        self._process.stdout.close()


class Pair:
    """A prefill and a decode process. ``command`` goes to both at once."""

    ROLES = ("prefill", "decode")

    def __init__(self, backend: str, environment: Mapping[str, str] | None = None) -> None:
        self._next_room = 1
        self._processes: dict[str, RankProcess] = {}
        try:
            for role in self.ROLES:
                self._processes[role] = RankProcess(role, backend, environment or {})
        except BaseException:
            self._end(kill=True)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(kill=exc is not None)

    def _end(self, *, kill: bool) -> None:
        for process in self._processes.values():
            process.end(kill=kill)

    def __getitem__(self, role: str) -> RankProcess:
        return self._processes[role]

    def command(self, do: str, *, by_role: dict[str, dict[str, Any]] | None = None, **arguments: Any) -> dict[str, Any]:
        """Answers by role; ``by_role`` holds arguments that differ."""
        for role, process in self._processes.items():
            process.ask(do, **arguments, **(by_role or {}).get(role, {}))
        return {role: process.answer() for role, process in self._processes.items()}

    def open(self, name: str, kind: str, memory: str, **options: Any) -> dict[str, Any]:
        """Set up a way between the two. An option that is a dict by role goes to that role only. What each side told."""
        by_role = {role: {"options": {k: _for(role, v) for k, v in options.items()}} for role in self.ROLES}
        told = self.command("open", name=name, kind=kind, memory=memory, by_role=by_role)
        crossed = {"prefill": {"told": told["decode"]}, "decode": {"told": told["prefill"]}}
        self.command("connect", name=name, by_role=crossed)
        return told

    def rooms(self, count: int) -> int:
        """The first of so many room numbers that have not been used."""
        first = self._next_room
        self._next_room += count
        return first

    def run(self, name: str, work: Work, besides: Sequence[RankProcess] = ()) -> dict[str, Any]:
        """One measurement: elapsed and processor seconds, and what each side has to say. ``besides``: more processes
        that are not others.
        """
        arguments = asdict(work) | {"first_room": self.rooms(work.rooms)}
        load, before = MachineLoad(), sum(process.cpu_seconds() for process in besides)
        sides = self.command("run", name=name, work=arguments)
        cpu = self.command("cpu")
        used = {role: round(cpu[role] - sides[role]["cpu_before"], 4) for role in self.ROLES}
        timed = [side for side in sides.values() if "start" in side]
        start, end = min(side["start"] for side in timed), max(side["end"] for side in timed)
        own = sum(used.values()) + sum(process.cpu_seconds() for process in besides) - before
        return {"elapsed_s": end - start, "cpu_s": used, "others_busy": load.others(own), "sides": sides}

    def close(self, name: str) -> None:
        """Close a way; decode first, so that nobody complains."""
        self.command("close", name=name)


def _for(role: str, value: Any) -> Any:
    return value.get(role) if isinstance(value, dict) and set(value) <= set(Pair.ROLES) and value else value
