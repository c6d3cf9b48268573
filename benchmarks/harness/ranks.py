"""The two processes as the benchmark sees them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from benchmarks.harness.figures import MachineLoad
from benchmarks.harness.work import Work

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).resolve().parents[2]
END_S = 20.0


class RankFailed(RuntimeError):
    """A command failed in one of the processes."""


class Pair:
    """A prefill and a decode process. ``command`` goes to both at once."""

    ROLES = ("prefill", "decode")

    def __init__(self, backend: str) -> None:
        self._next_room = 1
        self._processes = {
            role: subprocess.Popen(
                [sys.executable, "-m", "benchmarks.harness.rank_main", role, backend],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for role in self.ROLES
        }  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            if exc is not None:
                process.kill()
            assert process.stdin is not None
            process.stdin.close()
            process.wait(END_S)

    def command(self, do: str, *, by_role: dict[str, dict[str, Any]] | None = None, **arguments: Any) -> dict[str, Any]:
        """Answers by role; ``by_role`` holds arguments that differ."""
        for role, process in self._processes.items():
            assert process.stdin is not None
            process.stdin.write(json.dumps({"do": do, **arguments, **(by_role or {}).get(role, {})}) + "\n")
            process.stdin.flush()
        answers = {}
        for role, process in self._processes.items():
            assert process.stdout is not None
            answer = json.loads(process.stdout.readline() or '{"error": "the process has ended"}')
            if "error" in answer:
                raise RankFailed(f"{do} failed in the {role} process:\n{answer['error']}")
            answers[role] = answer["ok"]
        return answers

    def open(self, name: str, kind: str, memory: str, **options: Any) -> None:
        """Set up a way between the two. An option that is a dict by role goes to that role only."""
        by_role = {role: {"options": {k: _for(role, v) for k, v in options.items()}} for role in self.ROLES}
        told = self.command("open", name=name, kind=kind, memory=memory, by_role=by_role)
        crossed = {"prefill": {"told": told["decode"]}, "decode": {"told": told["prefill"]}}
        self.command("connect", name=name, by_role=crossed)

    def run(self, name: str, work: Work) -> dict[str, Any]:
        """One measurement: elapsed and processor seconds, and what each side has to say."""
        arguments = asdict(work) | {"first_room": self._next_room}
        self._next_room += work.rooms
        load = MachineLoad()
        sides = self.command("run", name=name, work=arguments)
        cpu = self.command("cpu")
        used = {role: round(cpu[role] - sides[role]["cpu_before"], 4) for role in self.ROLES}
        start, end = min(s["start"] for s in sides.values()), max(s["end"] for s in sides.values())
        return {
            "elapsed_s": end - start, "cpu_s": used, "others_busy": load.others(sum(used.values())), "sides": sides,
        }  # fmt: skip

    def close(self, name: str) -> None:
        """Close a way; decode first, so that nobody complains."""
        self.command("close", name=name)


def _for(role: str, value: Any) -> Any:
    return value.get(role) if isinstance(value, dict) and set(value) <= set(Pair.ROLES) and value else value
