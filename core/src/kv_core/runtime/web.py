"""Between the machine and the bootstrap servers: registration (prefill), routes and health probes (decode)."""

from __future__ import annotations

from collections.abc import Callable

from kv_core.contract.failures import BootstrapError
from kv_core.protocol import effects as fx
from kv_core.protocol.nodes import ProbeResult, RankAddress, Route, RouteError
from kv_core.runtime.bootstrap.addresses import format_address
from kv_core.runtime.bootstrap.errors import BootstrapConnectionError
from kv_core.runtime.bootstrap.routes import HealthReport, RouteInfo
from kv_core.runtime.bootstrap.service import HttpService

NOT_YET = frozenset({0, 404, 408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses (0: no answer) after which asking again may help."""


class BootstrapWeb:
    """Performs Resolve, Watch and Unwatch; none of it blocks, the answers come on the HTTP service's thread."""

    def __init__(
        self,
        service: HttpService,
        on_route: Callable[[str, Route | RouteError], None],
        on_probe: Callable[[str, ProbeResult], None],
    ) -> None:
        self._service = service
        self._on_route = on_route
        self._on_probe = on_probe

    def perform(self, effect: fx.Resolve | fx.Watch | fx.Unwatch) -> None:
        """Start what the effect asks for."""
        if isinstance(effect, fx.Resolve):
            self._service.resolve(effect.addr, self._resolved)
        elif isinstance(effect, fx.Watch):
            self._service.watch(effect.addr, self._probed)
        else:
            self._service.unwatch(effect.addr)

    def _resolved(self, addr: str, answer: RouteInfo | BootstrapError) -> None:
        self._on_route(addr, route_of(answer))

    def _probed(self, addr: str, answer: HealthReport | BootstrapError) -> None:
        self._on_probe(addr, probe_of(answer))


def route_of(answer: RouteInfo | BootstrapError) -> Route | RouteError:
    """The protocol's view of a route, or of why there is none."""
    if isinstance(answer, BootstrapError):
        return RouteError(str(answer), fatal=answer.status not in NOT_YET)
    ranks = {
        ranks: RankAddress(f"tcp://{format_address(address.host, address.port)}", address.instance_id)
        for ranks, address in answer.ranks.items()
    }
    return Route(answer.sizes, ranks, answer.page_size)


def probe_of(answer: HealthReport | BootstrapError) -> ProbeResult:
    """The protocol's view of a health probe."""
    if isinstance(answer, BootstrapError):
        refused = isinstance(answer, BootstrapConnectionError) and answer.immediate
        return ProbeResult(error=str(answer), refused=refused)
    return ProbeResult({rank.ranks: rank.instance_id for rank in answer.ranks})
