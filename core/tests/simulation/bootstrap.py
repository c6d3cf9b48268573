"""A prefill instance's bootstrap server, as the decode side's HTTP client sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kv_core.protocol.nodes import ProbeResult, RankAddress, Ranks, Route, RouteError

if TYPE_CHECKING:
    from core.tests.simulation.processes import Process, Slot
    from core.tests.simulation.world import World

HTTP_TIMEOUT_S = 1.0


class Bootstrap:
    """Answers ``Resolve`` and health probes, unless it is absent, silent, slow, foreign, stale or just restarted."""

    def __init__(self, world: World, index: int, ranks: list[Slot]) -> None:
        self.addr = f"boot{index}:8998"
        self.mode = "up"
        self._world = world
        self._slots = ranks
        self._routes: dict[Ranks, RankAddress] = {}
        self._watchers: set[str] = set()
        for slot in ranks:
            slot.bootstrap = self

    def register(self, process: Process) -> None:
        """A prefill rank says where it is. While the server is not up, it says so again later."""
        if not process.alive:
            return
        if self.mode in {"up", "slow"}:
            self._routes[process.slot.rank, 0, 0, 0] = RankAddress(process.slot.endpoint, process.name)
        else:
            self._world.clock.after(0.5, self.register, process)

    def break_down(self, mode: str, duration: float) -> None:
        """Behave like this for a while. ``restart``: forget all routes; ranks register again within a second."""
        if mode == "restart":
            self._routes.clear()
            self.mode = "absent"
        else:
            self.mode = mode
        self._world.clock.after(duration, self.mend)

    def mend(self) -> None:
        """All is well again."""
        self.mode = "up"
        for slot in self._slots:
            if slot.process is not None:
                self._world.clock.after(self._world.rng.uniform(0, 0.8), self.register, slot.process)

    # -- what the decode side's client does ------------------------------------------------------------------------

    def resolve(self, client: Process) -> None:
        """Answer one ``Resolve``: always, and once."""
        rng = self._world.rng
        delay = {"slow": rng.uniform(0.3, HTTP_TIMEOUT_S), "black": HTTP_TIMEOUT_S}.get(self.mode, 0.01 * rng.random())
        self._world.clock.after(delay, self._answer, client, self.mode == "black")

    def _answer(self, client: Process, timed_out: bool) -> None:
        answer: Route | RouteError
        if timed_out or self.mode == "black":
            answer = RouteError(f"GET {self.addr}/route timed out")
        elif self.mode == "absent":
            answer = RouteError(f"nobody listens at {self.addr}")
        elif self.mode == "foreign":
            answer = RouteError(f"{self.addr} serves another topology", fatal=True)
        elif len(self._routes) < len(self._slots):
            answer = RouteError(f"{len(self._routes)} of {len(self._slots)} ranks have registered at {self.addr}")
        else:
            answer = Route((len(self._slots), 1, 1, 1), dict(self._routes))
        client.call("route", client.decode.on_route, self.addr, answer)

    def watch(self, client: Process) -> None:
        """Probe from now on."""
        if client.name not in self._watchers:
            self._watchers.add(client.name)
            self._world.clock.after(client.settings.probe_interval_s, self._probe, client)

    def unwatch(self, client: Process) -> None:
        """Probe no more."""
        self._watchers.discard(client.name)

    def _probe(self, client: Process) -> None:
        if client.name not in self._watchers or not client.alive:
            self._watchers.discard(client.name)
            return
        if self.mode == "absent":
            result = ProbeResult(error="connection refused", refused=True)
        elif self.mode == "black":
            result = ProbeResult(error="timed out")
        else:
            result = ProbeResult({ranks: address.instance_id for ranks, address in self._routes.items()})
        client.call("probe", client.decode.on_probe, self.addr, result)
        self._world.clock.after(client.settings.probe_interval_s, self._probe, client)
