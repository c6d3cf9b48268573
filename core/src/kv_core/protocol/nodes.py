"""Prefill instances as the decode side knows them: where their bootstrap server is, which ranks it names, who waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kv_core.contract.transport import PeerKey
from kv_core.protocol.liveness import PeerLiveness
from kv_core.protocol.peers import Regret
from kv_core.protocol.rooms import Room

Ranks = tuple[int, int, int, int]

FIRST_RETRY_S = 0.1
MAX_RETRY_S = 2.0


@dataclass(frozen=True)
class RankAddress:
    """Where a prefill rank listens, and which process that is."""

    endpoint: str
    instance_id: str


@dataclass(frozen=True)
class Route:
    """What a bootstrap server says once all its ranks are in: (tp, pp, cp, dp) sizes, each rank's address, and tokens of a
    page (0: not told).
    """

    sizes: Ranks
    ranks: Mapping[Ranks, RankAddress]
    page_size: int = 0


@dataclass(frozen=True)
class RouteError:
    """Why there is no route. ``fatal``: asking again won't help."""

    message: str
    fatal: bool = False


@dataclass(frozen=True)
class ProbeResult:
    """Answer of one health probe: the instance id of each rank, or what went wrong (``refused``: nobody listens)."""

    instances: Mapping[Ranks, str] | None = None
    error: str = ""
    refused: bool = False


@dataclass(eq=False)
class Node:
    """One prefill instance, by its bootstrap address."""

    addr: str
    liveness: PeerLiveness
    route: Route | None = None
    resolving: bool = False
    watched: bool = False
    waiting: dict[int, Room] = field(default_factory=dict)  # by life
    regrets: dict[int, Regret] = field(default_factory=dict)  # by room number, until there is a route
    destinations: int = 1  # most decode ranks that one of its ranks serves in a room, as far as is known
    whole: frozenset[PeerKey] = frozenset()  # sources that were found to have all that this rank needs
    retry_s: float = FIRST_RETRY_S
    error: str = ""

    @property
    def wanted(self) -> bool:
        """Whether anything depends on its route."""
        return bool(self.waiting or self.regrets)
