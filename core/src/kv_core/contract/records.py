"""Small values that engines, observers and backends read: metrics, events, and what a backend says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from kv_core.contract.enums import Capability, FailureCode, KVPoll, Liveness, Role
from kv_core.contract.failures import Failure
from kv_core.contract.moments import Moment

if TYPE_CHECKING:
    from kv_core.contract.interfaces import BaseKVManager, BaseKVReceiver, BaseKVSender
    from kv_core.contract.transport import Transport

KV_CORE_API = (1, 0)
"""(major, minor) of the plugin contract. A plugin is taken if it was built for the same major and no newer minor."""


@dataclass(frozen=True)
class KVTransferMetric:
    """What one room's transfer cost. None means not known; no field ever falls back to something else.

    transfer_latency_s: time during which at least one of the room's transfers was on the wire (overlaps counted
    once); latency_source says whether the engine measured it ("engine") or core did, from submission to completion
    ("core"). transfer_total_bytes: bytes of KV, state and auxiliary items that landed. alloc_latency_s: from the
    room's opening until both sides had named their pages. chunks: number of ``send`` calls that moved bytes.
    """

    transfer_latency_s: float | None = None
    transfer_total_bytes: int | None = None
    alloc_latency_s: float | None = None
    bootstrap_latency_s: float | None = None
    queue_latency_s: float | None = None
    total_latency_s: float | None = None
    chunks: int = 0
    latency_source: str = ""


class RoomEventKind(str, Enum):
    """What happened to a room."""

    OPENED = "opened"
    CHUNK_POSTED = "chunk_posted"
    CONCLUDED = "concluded"
    RELEASED = "released"


@dataclass(frozen=True)
class RoomEvent:
    """Told to observers, in order for each room. ``time_s`` is monotonic. ``metric`` and ``failure`` come with CONCLUDED.

    ``drain_latency_s`` comes with RELEASED: seconds from the room's end until it was proven that its pages may be used
    again; never negative. ``history`` comes with both: with CONCLUDED what happened to the room until then, with RELEASED
    what came after; empty if ``TransferConfig.flight_recorder`` is 0. ``instance``: id of the manager. ``traceparent``: the
    trace that the engine named for the room, else the one that the other side's engine did, as far as it is known yet.
    """

    kind: RoomEventKind
    backend: str
    role: Role
    room: int
    life: int
    state: KVPoll
    time_s: float
    metric: KVTransferMetric | None = None
    failure: Failure | None = None
    drain_latency_s: float | None = None
    history: tuple[Moment, ...] = ()
    instance: str = ""
    traceparent: str | None = None


@dataclass(frozen=True)
class PeerEvent:
    """A peer joined (OK), became suspect, recovered (OK again), or was lost (DEAD).

    ``before``: what was believed of it until now, never DEAD; None if it had not joined: so OK after None is a peer that
    joined, OK after SUSPECT one that recovered, and DEAD after None one that could not be met. ``code`` comes with DEAD
    and says why: ``closed`` if it said farewell, else as the failure of its rooms does.
    """

    backend: str
    role: Role
    peer: str
    liveness: Liveness
    reason: str
    time_s: float
    before: Liveness | None = None
    code: FailureCode | None = None


@dataclass(frozen=True)
class BackendInfo:
    """What a backend says of itself; reading it loads no native library."""

    name: str
    distribution: str
    version: str
    api_version: tuple[int, int]
    capabilities: frozenset[Capability]
    description: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "capabilities", frozenset(Capability(c) for c in self.capabilities))


@dataclass(frozen=True)
class BackendRecord:
    """What ``kv_backend()`` returns: the description, and the classes that core builds.

    transport is a concrete ``Transport`` class; its module must import without the native engine (import that in
    ``__init__``). preflight, if given, is called when the backend is loaded and raises the engine's real import
    error. manager, sender and receiver replace core's ``CommonKV*`` classes and must derive from the ``Base*`` ones.
    """

    info: BackendInfo
    transport: type[Transport]
    preflight: Callable[[], None] | None = None
    manager: type[BaseKVManager] | None = None
    sender: type[BaseKVSender] | None = None
    receiver: type[BaseKVReceiver] | None = None


class CheckStatus(str, Enum):
    """Outcome of one doctor check."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class DoctorFinding:
    """One finding: a stable id, a sentence, and what to do about it."""

    id: str
    status: CheckStatus
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class DoctorCheck:
    """A check that ``kv-core doctor`` runs: a stable id, a sentence, and a function that returns its findings."""

    id: str
    title: str
    run: Callable[[], list[DoctorFinding]] = field(compare=False)
