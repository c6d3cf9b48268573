"""Prefill and decode instances as the router sees them: a process for each tensor-parallel rank, and a pipe to each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from engines import serve

from kv_core import Role

ANSWER_S = 120.0
"""Longest time without any answer."""
FORK = multiprocessing.get_context("fork")
"""Ranks are forked from this process while it has no threads: to load torch once takes longer than all that they do."""


class Instance:
    """One engine; ``earlier`` are those started before it."""

    def __init__(self, role: Role, size: int, earlier: Sequence[Instance]) -> None:
        self.role, self.size = role, size
        self.bootstrap: str | None = None
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(size):
            mine, theirs = FORK.Pipe()
            self.pipes.append(mine)
            # A fork has our ends of the pipes made before. It closes them, or no rank would see our death.
            inherited = [pipe for instance in (*earlier, self) for pipe in instance.pipes]
            self.processes.append(FORK.Process(target=_rank, args=(inherited, theirs, role, rank, size)))
            self.processes[-1].start()
            theirs.close()

    def __str__(self) -> str:
        return f"{self.role.value} tp {self.size}"

    def tell(self, message: dict[str, Any] | None) -> None:
        """Send every rank a message; None: no more will come."""
        for pipe in self.pipes:
            pipe.send(message)

    def end(self) -> None:
        """Let the ranks finish what they have. Raises ``RuntimeError`` if one does not end well."""
        self.tell(None)
        for rank, process in enumerate(self.processes):
            process.join(ANSWER_S)
            if process.exitcode != 0:
                raise RuntimeError(f"{self}: rank {rank} ended with status {process.exitcode}")

    def kill(self) -> None:
        """End the processes that have not ended."""
        for process in self.processes:
            process.kill()
            process.join()


def _rank(inherited: list[Connection], pipe: Connection, role: Role, rank: int, size: int) -> None:
    for other in inherited:
        other.close()
    serve(pipe, role, rank, size)


@contextmanager
def started(prefill: Sequence[int], decode: Sequence[int]) -> Iterator[tuple[list[Instance], list[Instance]]]:
    """(prefill instances, decode instances) of so many ranks each; they end with the block, and are killed if it fails."""
    sides: tuple[list[Instance], list[Instance]] = ([], [])
    try:
        for side, role, sizes in zip(sides, (Role.PREFILL, Role.DECODE), (prefill, decode), strict=True):
            for size in sizes:
                side.append(Instance(role, size, [*sides[0], *sides[1]]))
        yield sides
        for instance in (*sides[0], *sides[1]):
            instance.end()
    finally:
        for instance in (*sides[0], *sides[1]):
            instance.kill()


def answers(instances: Sequence[Instance]) -> list[dict[str, Any]]:
    """The next messages of any rank, one at least. Raises ``RuntimeError`` if there will be none."""
    pipes: dict[Any, Instance] = {pipe: instance for instance in instances for pipe in instance.pipes}
    ready: list[Any] = wait(list(pipes), ANSWER_S)
    if not ready:
        raise RuntimeError(f"no answer for {ANSWER_S} seconds")
    found = []
    for pipe in ready:
        try:
            found.append(pipe.recv())
        except EOFError:
            raise RuntimeError(f"{pipes[pipe]}: a rank ended too early") from None
    return found
