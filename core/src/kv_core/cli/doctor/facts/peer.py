"""What a prefill instance's bootstrap server tells, and whether its ranks can be reached. Asks, and registers nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from kv_core.cli.doctor.facts.network import is_local, resolve, try_connect
from kv_core.cli.doctor.rooms import ROOMS
from kv_core.contract.failures import BootstrapError
from kv_core.runtime.bootstrap import BootstrapClient, BootstrapConnectionError, parse_address
from kv_core.runtime.bootstrap.routes import HealthReport, Ranks, RouteInfo

MAX_RANKS = 256
"""Ranks to which a connection is tried."""
CONNECTIONS = 16
UNRESOLVED = "unresolved"
ANSWER = "answer"
"""Values of ``PeerFacts.trouble`` besides those of ``ConnectionTrouble``: the name is unknown; the answer was no good."""


@dataclass(frozen=True)
class PeerFacts:
    """``trouble``: empty if the server answered, else what was seen (see ``ConnectionTrouble``), with the sentence in ``error``.

    ``route`` is None with ``route_error`` while ranks are missing. ``unreachable``: ranks whose control socket takes no
    connection from here, with the reason. ``rooms``: those that a serving doctor keeps open. ``local``: it is this machine.
    """

    addr: str
    trouble: str = ""
    error: str = ""
    health: HealthReport | None = None
    route: RouteInfo | None = None
    route_error: str = ""
    unreachable: dict[Ranks, str] = field(default_factory=dict)
    rooms: tuple[int, ...] = ()
    local: bool = False


def look_at_peer(addr: str, timeout_s: float) -> PeerFacts:
    """Ask it. ``timeout_s``: for each answer. Raises ``InvalidConfig`` for an address that is none."""
    host, _ = parse_address(addr)
    name = resolve(host)
    if name.problem:
        return PeerFacts(addr, UNRESOLVED, name.problem)
    local = any(is_local(each) for each in name.addresses)
    client = BootstrapClient(addr, timeout_s)
    try:
        health = client.health()
    except BootstrapConnectionError as error:
        return PeerFacts(addr, error.trouble.value, str(error), local=local)
    except BootstrapError as error:
        return PeerFacts(addr, ANSWER, str(error), local=local)
    try:
        route = client.route()
        rooms = tuple(client.query_dp_ranks(ROOMS))
    except BootstrapError as error:
        return PeerFacts(addr, health=health, route_error=str(error), local=local)
    return PeerFacts(addr, "", "", health, route, "", _unreachable(route, timeout_s), rooms, local)


def _unreachable(route: RouteInfo, timeout_s: float) -> dict[Ranks, str]:
    ranks = sorted(route.ranks.items())[:MAX_RANKS]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        problems = pool.map(lambda each: try_connect(each[1].host, each[1].port, timeout_s), ranks)
        return {place: problem for (place, _), problem in zip(ranks, problems, strict=True) if problem}
