"""Runs a state machine of the suite under Hypothesis: the same for the same seed, and with the history in the message."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, configuration, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from kv_conformance.nodes.env import Env
from kv_conformance.suite.model_life import Broken
from kv_core import KVCoreError


@dataclass(frozen=True)
class Budget:
    """How many histories of how many steps, and in how many of them a process is killed."""

    examples: int
    crashes: int
    steps: int = 50

    @property
    def crash_every(self) -> int:
        """In every so many-th history."""
        return self.examples // self.crashes


class Stopped(BaseException):
    """Ends the run at the first thing that is wrong. No ``Exception``: Hypothesis would try the history once more, and a
    backend with threads need not answer in the same way again.
    """


class Patience:
    """Waiting for something that must happen: often at first, then less so."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._deadline = monotonic() + limit_s
        self._pause_s = 0.0003

    def lasts(self) -> bool:
        """Wait a moment; False, and at once, when the limit is over."""
        if monotonic() > self._deadline:
            return False
        sleep(self._pause_s)
        self._pause_s = min(1.2 * self._pause_s, 0.01)
        return True

    def __str__(self) -> str:
        return f"{self.limit_s:.0f} s"


@dataclass
class Tale:
    """What happened in one history: its acts, to be done again, and in words. replay: the function that does them again.
    error: what ended the run.
    """

    replay: str
    number: int = 0
    error: Exception | None = None
    interrupted: bool = False
    acts: list[tuple[Any, ...]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """The next one."""
        self.number += 1
        self.acts, self.words = [], []

    def tell(self, text: str) -> None:
        """One more line."""
        self.words.append(f"{len(self.acts):4}. {text}")

    def __str__(self) -> str:
        lines = "\n".join(self.words)
        acts = [tuple(act) for act in self.acts]
        return f"The history, number {self.number} of this run:\n{lines}\nTo do it again: {self.replay}(env, {acts!r})"


def explore(env: Env, machine: type[RuleBasedStateMachine], tale: Tale, budget: Budget) -> None:
    """Run the machine. Raises ``AssertionError`` with the history at the first thing that the contract doesn't allow."""
    chosen = settings(
        max_examples=budget.examples, stateful_step_count=budget.steps, derandomize=True, database=None, deadline=None,
        phases=(Phase.generate,), print_blob=False, verbosity=Verbosity.quiet, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck), backend="hypothesis",
    )  # fmt: skip
    try:
        with _nothing_written():
            run_state_machine_as_test(seed(env.seed)(machine), settings=chosen)
    except BaseException:
        if tale.error is not None:  # whatever Hypothesis made of it
            raise _told(tale.error, tale, env.seed) from tale.error
        env.notes.append(str(tale))  # the check's time limit, or Hypothesis itself
        raise


def guarded(tale: Tale, action: Callable[[], None]) -> None:
    """Do it, unless something has gone wrong before; end the run if something does now."""
    if tale.error is not None or tale.interrupted:
        return
    try:
        action()
    except Exception as error:
        tale.error = error
        raise Stopped from error
    except BaseException:
        tale.interrupted = True
        raise


def with_tale(env: Env, tale: Tale, action: Callable[[], None]) -> None:
    """Do it outside of Hypothesis; what is wrong then is told as ``explore`` does."""
    try:
        action()
    except Exception as error:
        raise _told(error, tale, env.seed) from error


def _told(error: Exception, tale: Tale, seed: int) -> Exception:
    """The error, with its history if it is the backend's."""
    if not isinstance(error, Broken | AssertionError | KVCoreError):
        return error
    what = str(error) if isinstance(error, Broken | AssertionError) else f"{type(error).__name__}: {error}"
    return AssertionError(f"after step {len(tale.acts)} of a history (seed {seed}): {what}\n{tale}")


@contextmanager
def _nothing_written() -> Iterator[None]:
    """Let Hypothesis keep what it keeps anyhow (constants of modules) away from the folder that the suite is run in."""
    before = getattr(configuration, "__hypothesis_home_directory", None)
    with tempfile.TemporaryDirectory(prefix="kv-conformance-") as folder:
        configuration.set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            configuration.set_hypothesis_home_dir(before)
