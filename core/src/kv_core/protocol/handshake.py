"""Compatibility before the first byte: named fields, each with its rule, and a refusal that lists every difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kv_core.contract.enums import Direction, FailureCode, FailureStage, Role, Side
from kv_core.contract.failures import Failure
from kv_core.contract.memory import KVArgs
from kv_core.protocol.messages import PROTOCOL_VERSION

Fields = Mapping[str, "str | int"]

INFORMATIVE = frozenset({"backend_version", "core_version", "tp_rank", "pp_rank", "cp_rank", "dp_rank", "dp_size"})
"""Fields that are told but need not be equal."""


@dataclass(frozen=True)
class Difference:
    """One field that differs, with both values as text. ``rule``: what it breaks, if it need not be equal as such."""

    field: str
    local: str
    remote: str
    rule: str = ""


def fields_of(
    args: KVArgs, backend: str, backend_version: str, core_version: str, direction: Direction = Direction.WRITE
) -> dict[str, str | int]:
    """What one rank tells of itself in the handshake. ``extra.<name>`` carries ``KVArgs.extra``."""
    place = args.topology
    fields: dict[str, str | int] = {
        "protocol_version": PROTOCOL_VERSION, "backend": backend, "backend_version": backend_version,
        "core_version": core_version, "model": args.model, "revision": args.revision, "dtype": args.dtype,
        "kv_layout": args.kv_layout, "page_size": args.page_size, "num_kv_heads": args.num_kv_heads,
        "head_dim": args.head_dim, "tp_size": place.tp_size, "pp_size": place.pp_size, "cp_size": place.cp_size,
        "dp_size": place.dp_size, "tp_rank": place.tp_rank, "pp_rank": place.pp_rank, "cp_rank": place.cp_rank,
        "dp_rank": place.dp_rank, "state_pools": ",".join(sorted(pool.name for pool in args.states)),
        "direction": direction.value,
    }  # fmt: skip
    fields.update({f"extra.{name}": str(value) for name, value in args.extra.items()})
    return fields


IMPLIED: dict[str, str | int] = {"direction": Direction.WRITE.value}
"""What a field says that a peer does not tell, for it is older than the field."""
SHAPE = frozenset({"page_size", "kv_layout", "tp_size", "pp_size", "cp_size", "state_pools"})
"""Fields that need not be equal where both sides describe what their memory is made of."""


def differences(local: Fields, remote: Fields, free: frozenset[str] = INFORMATIVE) -> list[Difference]:
    """Every field that both know and that must be equal but is not; ``free`` ones need not be. A field that only one side
    knows is ignored, so that versions can roll.
    """
    remote = IMPLIED | dict(remote)
    shared = [name for name in local if name in remote and name not in free]
    return [Difference(name, str(local[name]), str(remote[name])) for name in shared if local[name] != remote[name]]


class PeerLayout(Protocol):
    """A peer's memory layout and place, read and checked, as this rank sees them."""

    def num_items(self, pool: str) -> int | None:
        """How many items the pool has, or None if the peer has no such pool."""
        ...

    def moves(self, pool: str) -> bool:
        """Whether something of this pool moves between the two ranks."""
        ...

    @property
    def idle(self) -> bool:
        """Whether nothing moves between the two ranks."""
        ...

    def prefix_pages(self, prefix: int) -> int:
        """How many of prefill's pages decode has whole, if it has ``prefix`` of its own."""
        ...

    def mismatch(self, announced: int, named: int, prefix: int) -> str:
        """Why so many pages of prefill's and so many of decode's can't be of one prompt; empty if they can."""
        ...


class LayoutRules(Protocol):
    """What the protocol needs to know of layouts: given by the runtime (or by a simulation)."""

    def read(self, wire: dict[str, Any], fields: Fields) -> PeerLayout:
        """Read what came in a handshake. Raises ``MessageError``."""
        ...

    def differences(self, remote: PeerLayout, mine: Fields, theirs: Fields) -> list[Difference]:
        """Why pages can't move between the two: fields that differ, and what the layouts say; empty if they can."""
        ...

    def missing(self, sources: list[PeerLayout]) -> list[Difference]:
        """What this decode rank has and none of these prefill ranks, which together must serve it."""
        ...

    def sources(self, sizes: tuple[int, int, int, int], dp_rank: int, page_size: int) -> SourceRanks:
        """Which ranks of a prefill instance serve this decode rank. Raises ``ValueError`` with the rule that is broken."""
        ...

    def coverage(self, pages: int) -> Coverage:
        """A new count of what has been sent of a room of ``pages`` pages."""
        ...


class Coverage(Protocol):
    """Which pages of which layers have been handed over."""

    def advance(self, n: int, layers: range | None = None) -> int:
        """Count ``n`` more pages on these layers; returns the position of the first. Raises ``ValueError``."""
        ...

    @property
    def complete(self) -> bool:
        """Whether every layer has all pages."""
        ...


Ranks = tuple[int, int, int, int]


@dataclass(frozen=True)
class SourceRanks:
    """The (tp, pp, cp, dp) ranks that send to us, with how many decode ranks each of them sends to; and ``dummies``, which
    send to nobody and hear of the room from us.
    """

    required: Mapping[Ranks, int]
    dummies: tuple[Ranks, ...] = ()


def refusal(found: list[Difference], role: Role, local: str, remote: str) -> Failure:
    """The failure that says which fields differ, and what that breaks. Values are given as prefill's and decode's, whoever
    writes it.
    """
    mine, theirs = (role.value, role.peer.value)
    texts = [f"{d.field} ({mine} {d.local!r}, {theirs} {d.remote!r})" for d in found]
    rules = list(dict.fromkeys(d.rule for d in found if d.rule))
    broken = f". The rule{'s' if len(rules) > 1 else ''}: {'; '.join(rules)}" if rules else ""
    return Failure(
        FailureStage.HANDSHAKE, FailureCode.INCOMPATIBLE,
        f"the two sides can't exchange pages: {'; '.join(texts)}{broken}. Give both the same model, settings and versions",
        Side.UNKNOWN, retryable=False, origin=local, peer=remote,
    )  # fmt: skip
