"""Two rank processes that serve their metrics, and traffic between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any

from core.tests.observe.prometheus_server import fetch
from core.tests.observe.support import Samples
from tests.support.memory import Shape
from tests.support.orders import Order
from tests.support.rank import RankProcess
from tests.support.traffic import Traffic

if TYPE_CHECKING:
    from typing_extensions import Self

SHAPE = Shape(pages=512, layers=1, page_bytes=512, aux_rows=32)
TEMPLATE = Order(0, "", pages=4, chunks=2, aux=True)
CONCURRENCY = 4
PAUSE_S = 0.02
PROGRAM = "tests.support.observed_rank"


class Scene:
    """Prefill and decode, each a process of its own, and what is done to them. Call ``pump`` often; one thread."""

    def __init__(self, backend: str = "fake", seed: int = 0, shape: Shape = SHAPE) -> None:
        self.backend = backend
        self.seed = seed
        self.shape = shape
        self.stack = ExitStack()
        self.ranks: dict[str, RankProcess] = {}
        self.traffic: Traffic | None = None
        self.steps: list[Callable[[], object]] = []
        """What is done at each ``pump``."""
        self.addr = ""

    def start(
        self, *, config: Mapping[str, Any] | None = None, prefill: Mapping[str, Any] | None = None,
        decode: Mapping[str, Any] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        """Both ranks. ``more``: what ``observed_rank`` takes, for both; with ``prefill_`` or ``decode_`` before it for one."""
        sides = {"prefill": dict(prefill or {}), "decode": dict(decode or {})}
        for role, own in sides.items():
            rank = self.ranks[role] = RankProcess(role, program=PROGRAM)
            self.stack.callback(_end, rank)
            if role == "prefill":
                self.addr = rank.call("serve_bootstrap")
                own["bootstrap_addr"] = self.addr
            mine = {key.removeprefix(f"{role}_"): value for key, value in more.items() if key.startswith(f"{role}_")}
            settings = {"probe_interval_s": 0.5, **(config or {}), **own}
            rank.start(self.shape, config=settings, backend=self.backend, seed=self.seed, **mine)

    @property
    def prefill(self) -> RankProcess:
        """The process."""
        return self.ranks["prefill"]

    @property
    def decode(self) -> RankProcess:
        """The process."""
        return self.ranks["decode"]

    @property
    def targets(self) -> list[str]:
        """``host:port`` of every rank's metrics."""
        return [rank.told["metrics"] for rank in self.ranks.values()]

    def begin_traffic(self, concurrency: int = CONCURRENCY, **order: Any) -> Traffic:
        """Rooms from now on."""
        template = replace(TEMPLATE, addr=self.addr, **order)
        self.traffic = Traffic(self.prefill, self.decode, template, concurrency)
        self.steps.append(self._traffic_step)
        return self.traffic

    def _traffic_step(self) -> None:
        if self.traffic is not None and not self.traffic.paused:
            self.traffic.pump()

    def pump(self) -> None:
        """Go on with everything."""
        for step in list(self.steps):
            step()
        sleep(PAUSE_S)

    def pump_until(self, condition: Callable[[], Any], what: str, limit_s: float = 60.0) -> Any:
        """Go on until it is true; its value."""
        deadline = monotonic() + limit_s
        while not (found := condition()):
            assert monotonic() < deadline, f"{what}: not within {limit_s:g} s"
            self.pump()
        return found

    def scrape(self, role: str) -> Samples:
        """What one rank exports now."""
        return Samples(fetch(f"http://{self.ranks[role].told['metrics']}/metrics"))

    def metric(self, role: str, name: str, **labels: str) -> float:
        """One number of it."""
        return self.scrape(role).value(name, **labels)

    def close(self) -> None:
        """End both."""
        self.stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _end(rank: RankProcess) -> None:
    """A rank that was broken on purpose need not end well."""
    if rank.alive:
        rank.thaw()
        rank.kill()
    rank.close()
