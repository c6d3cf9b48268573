"""The router: starts both ranks, gives each request to both, kills and restarts a rank if asked to, and adds up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kv_core.cli.demo.book import Attempt, Book, Totals
from kv_core.cli.demo.killing import KillRecord
from kv_core.cli.demo.lines import Ended, FromRank, Met, OpenRoom, PeerDied, Ready, Stop, Stopped
from kv_core.cli.demo.processes import RankProcess, RankSelector
from kv_core.cli.demo.settings import DemoSettings, rank_settings
from kv_core.contract.enums import Role
from kv_core.runtime.bootstrap import BootstrapServer

if TYPE_CHECKING:
    from typing_extensions import Self

START_S = 60.0
"""Longest time for a rank to import its backend and open its manager."""
STOP_S = 15.0
"""Longest time for a rank to drain, report and end."""
TICK_S = 0.1
MAX_ATTEMPTS = 8
"""How often a request is tried when a rank is killed. Without that once: then a failure is a failure."""


class DemoHung(Exception):
    """Nothing has happened for longer than every deadline allows."""


@dataclass
class Outcome:
    """What a run came to. ``seconds``: from the first request's start to the last one's end."""

    totals: Totals
    seconds: float
    kill: KillRecord | None
    stopped: dict[Role, Stopped] = field(default_factory=dict)
    restarts: int = 0

    @property
    def stray_bytes(self) -> int:
        """Bytes that landed where no room had asked for them."""
        return sum(end.stray_bytes for end in self.stopped.values())


class Router:
    """One run. ``on_progress`` is called after every change with the number of requests that are over, ``on_metrics`` with
    the address of a rank's metrics.

    Use it in ``with``: however it ends, no process is left.
    """

    def __init__(
        self,
        settings: DemoSettings,
        backend: str,
        seed: int,
        server: BootstrapServer,
        on_progress: Callable[[Totals], None],
        on_metrics: Callable[[Role, str], None] = lambda _role, _url: None,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._seed = seed
        self._server = server
        self._on_progress = on_progress
        self._on_metrics = on_metrics
        self._selector = RankSelector()
        self._ranks: dict[Role, RankProcess] = {}
        self._ready: set[Role] = set()
        self._ports = dict.fromkeys(Role, 0)
        self._metrics_ports = settings.metrics_ports()
        self._book = Book(settings.requests, MAX_ATTEMPTS if settings.kill else 1, seed)
        self._kill = KillRecord.planned(settings.kill, settings.requests) if settings.kill else None
        self._stopped: dict[Role, Stopped] = {}
        self._restarts = 0
        self._heard_at = 0.0
        self._just_met = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self._ranks.values():
            self._selector.remove(rank)
            rank.close()
        self._selector.close()

    def run(self) -> Outcome:
        """Serve every request. Raises ``RankDied`` and ``DemoHung``."""
        for role in Role:
            self._start(role)
        self._listen_until(lambda: self._all_ready and bool(self._server.snapshot()["ready"]), START_S, "to be ready")
        began = monotonic()
        # A room may wait for its peer, then for pages, then move, each for the timeout, before it must have failed.
        silence_s = 3 * self._settings.timeout + START_S
        while not self._book.done:
            self._issue()
            self._just_met = False
            self._listen(TICK_S)
            if self._kill is not None and self._kill.is_due(
                self._book, self._settings.concurrency, just_met=self._just_met
            ):
                self._kill_rank(self._kill)
            if monotonic() - self._heard_at > silence_s:
                raise DemoHung(f"no rank said anything for {silence_s:g} s; rooms in flight: {self._flying()}")
        seconds = monotonic() - began
        self._stop()
        return Outcome(self._book.totals, seconds, self._kill, self._stopped, self._restarts)

    @property
    def _all_ready(self) -> bool:
        return self._ready == set(Role)

    def _flying(self) -> str:
        rooms = list(self._book.in_flight)
        return ", ".join(map(str, rooms[:8])) + (f" and {len(rooms) - 8} more" if len(rooms) > 8 else "")

    # -- requests --------------------------------------------------------------------------------------------------

    def _issue(self) -> None:
        """Fill the window, while both ranks are there to serve."""
        while self._all_ready and self._book.waiting and len(self._book.in_flight) < self._settings.concurrency:
            attempt = self._book.next(monotonic())
            request = OpenRoom(self._server.host, self._server.port, attempt.room)
            for role in Role:
                self._ranks[role].send(request)

    def _over(self, attempt: Attempt) -> None:
        if self._kill is not None:
            self._kill.over(attempt, monotonic())
        self._on_progress(self._book.totals)

    # -- listening -------------------------------------------------------------------------------------------------

    def _listen(self, timeout_s: float) -> None:
        for rank, messages in self._selector.wait(list(self._ranks.values()), timeout_s):
            for message in messages:
                self._heard(rank.role, message)
            if rank.closed and rank.role not in self._stopped:
                raise rank.died()

    def _heard(self, role: Role, message: FromRank) -> None:
        self._heard_at = monotonic()
        if isinstance(message, Ended):
            attempt = self._book.ended(role, message)
            if attempt is not None:
                self._over(attempt)
        elif isinstance(message, Met):
            # The kill has to hit rooms that the survivor knows to be shared with the one that dies.
            attempt = self._book.in_flight.get(message.room)
            if attempt is not None and (self._kill is None or role is self._kill.role.peer):
                attempt.met = self._just_met = True
        elif isinstance(message, Ready):
            self._ready.add(role)
            self._ports[role] = message.control_port
            if message.metrics_url:
                self._metrics_ports[role] = urlsplit(message.metrics_url).port  # a restarted rank is found there, too
                self._on_metrics(role, message.metrics_url)
        else:
            self._stopped[role] = message

    def _listen_until(self, condition: Callable[[], bool], limit_s: float, what: str) -> None:
        deadline = monotonic() + limit_s
        while not condition():
            if monotonic() > deadline:
                missing = ", ".join(f"{role.value} (pid {rank.pid})" for role, rank in self._ranks.items())
                raise DemoHung(f"waited {limit_s:g} s for the ranks {what}: {missing}")
            self._listen(TICK_S)

    # -- ranks -----------------------------------------------------------------------------------------------------

    def _start(self, role: Role) -> None:
        told = rank_settings(
            self._settings, role, self._backend, self._seed, self._server.address, self._ports[role],
            self._metrics_ports[role],
        )  # fmt: skip
        rank = RankProcess(role, told)
        self._ranks[role] = rank
        self._selector.add(rank)

    def _kill_rank(self, kill: KillRecord) -> None:
        """SIGKILL, tell the survivor what only the router can know, and start the rank again on the same port."""
        victim, survivor = self._ranks[kill.role], self._ranks[kill.role.peer]
        victim.kill()
        kill.killed(victim.pid, survivor.pid, self._book, monotonic())
        self._ready.discard(kill.role)
        self._selector.remove(victim)
        for message in victim.receive():  # what it said before it died
            self._heard(kill.role, message)
        victim.close()
        for attempt in self._book.rank_died(kill.role):
            self._over(attempt)
        survivor.send(PeerDied())
        self._start(kill.role)
        self._restarts += 1
        self._listen_until(lambda: self._all_ready, START_S, f"({kill.role.value} after its restart) to be ready")
        kill.ready_at = monotonic()

    def _stop(self) -> None:
        """Let both ranks drain and report."""
        for rank in self._ranks.values():
            rank.send(Stop())
        self._listen_until(lambda: len(self._stopped) == len(Role), STOP_S, "to drain and report")
        if self._kill is not None:
            self._kill.survivor_kept = self._ranks[self._kill.role.peer].pid == self._kill.survivor_pid
        for rank in self._ranks.values():
            rank.wait(STOP_S)
