"""What is shown: endpoints, and the sums over them for each role. Values only; ``summing`` makes them.

Seconds, bytes and numbers of rooms; rates are by second. What needs two readings is None before there are two.
"""

from __future__ import annotations

from dataclasses import dataclass

from kv_core.cli.top.quantiles import Spread


@dataclass(frozen=True)
class EndpointRow:
    """One endpoint. ``error``: why it did not answer, a sentence; empty if it did."""

    address: str
    kind: str
    error: str = ""
    roles: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    transports: tuple[str, ...] = ()
    restarts: int = 0

    @property
    def up(self) -> bool:
        """Whether it answered."""
        return not self.error


@dataclass(frozen=True)
class RankRow:
    """One rank as its bootstrap server knows it. Ages in seconds."""

    rank: tuple[int, int, int, int]
    """tp, pp, cp, dp."""
    instance_id: str
    renewed_s: float
    progress_s: float


@dataclass(frozen=True)
class BootstrapView:
    """What a bootstrap server said. ``ready``: every rank is registered."""

    address: str
    ready: bool
    ranks: tuple[RankRow, ...]


@dataclass(frozen=True)
class FailureRow:
    """How often rooms ended so: within the window (None before two readings), and since the processes began."""

    outcome: str
    stage: str
    reason: str
    window: float | None
    total: float


@dataclass(frozen=True)
class PeerFigures:
    """``now``: peers with a session, or being greeted. What happened to them, in the window and in all.

    A peer that was lost or not met is counted with the reason: ``lost: peer_lost``.
    """

    now: float
    window: dict[str, float]
    total: dict[str, float]


@dataclass(frozen=True)
class RoleView:
    """The sum over all endpoints that answer, of one role. ``troubles``: sentences about what needs somebody's eye."""

    role: str
    endpoints: int
    rooms: dict[str, float]
    """By state."""
    per_second: dict[str, float] | None
    """Rooms opened, and rooms ended by outcome."""
    failed_share: float | None
    """Of the rooms that succeeded or failed within the window; None if there was none."""
    goodput: float | None
    """Bytes of succeeded rooms a second."""
    wire_rate: float | None
    """Bytes of succeeded rooms by their time on the network; None if none ended."""
    latency_s: dict[str, Spread] | None
    failures: tuple[FailureRow, ...]
    peers: PeerFigures
    gauges: dict[str, float]
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """One frame. ``window_s``: what rates and percentiles are over, the longest of the endpoints'."""

    window_s: float
    endpoints: tuple[EndpointRow, ...]
    roles: tuple[RoleView, ...]
    bootstrap: tuple[BootstrapView, ...] = ()

    @property
    def all_up(self) -> bool:
        """Whether every endpoint answered."""
        return all(row.up for row in self.endpoints)
