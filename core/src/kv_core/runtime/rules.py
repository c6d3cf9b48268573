"""The protocol's questions about layouts, answered by ``kv_core.layout`` for one rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from kv_core.contract.enums import Role
from kv_core.contract.failures import InvalidConfig, MessageError
from kv_core.contract.memory import AUX_POOL, KV_POOL, KVArgs, Topology
from kv_core.contract.transport import TransferPlan
from kv_core.layout import (
    Coverage,
    MemoryLayout,
    Move,
    PageSide,
    Placement,
    Sides,
    explain,
    findings,
    is_described,
    missing_layers,
    plan_transfer,
    pools_sent,
    source_ranks,
)
from kv_core.protocol import handshake
from kv_core.protocol.handshake import Difference, Fields, PeerLayout, SourceRanks

WHOLE = "each layer that a decode rank has must be on one of the prefill ranks that serve it"
PAGED_STATE = (
    "a state component that is kept in pages needs pages of one size, and the same context parallelism, on both sides"
)
MAX_MAPPINGS = 256
"""Shapes of prefill instances of which the ranks that serve this one are remembered."""


@dataclass(frozen=True, eq=False)
class Place:
    """A rank: its memory, where it stands, and its pages."""

    layout: MemoryLayout
    topology: Topology
    page_size: int

    @property
    def side(self) -> PageSide:
        """Its pages in a prompt."""
        return PageSide(self.page_size, self.topology.cp_rank, self.topology.cp_size)


@dataclass(frozen=True, eq=False)
class Pair:
    """A peer as this rank sees it: a ``PeerLayout``, from which the transfer engine makes the plan. Pure."""

    role: Role
    mine: Place
    theirs: Place

    @property
    def _ordered(self) -> tuple[Place, Place]:
        return (self.mine, self.theirs) if self.role is Role.PREFILL else (self.theirs, self.mine)

    @cached_property
    def placement(self) -> Placement:
        """Where both sides' pages stand."""
        prefill, decode = self._ordered
        return Placement(prefill.side, decode.side)

    @cached_property
    def _moved(self) -> frozenset[str]:
        prefill, decode = self._ordered
        return pools_sent(prefill.layout, decode.layout, prefill.topology, decode.topology)

    def work_out(self) -> None:
        """Find out what moves while hands are shaken, on the control thread: it takes milliseconds for large layouts, and the
        first to ask would be an engine's ``send``.
        """
        _ = self._moved

    def num_items(self, pool: str) -> int | None:
        """See ``PeerLayout``."""
        return self.theirs.layout.num_items(pool)

    def moves(self, pool: str) -> bool:
        """See ``PeerLayout``."""
        return pool in self._moved

    @property
    def idle(self) -> bool:
        """See ``PeerLayout``."""
        return not self._moved

    def prefix_pages(self, prefix: int) -> int:
        """See ``PeerLayout``."""
        return self.placement.prefix_pages(prefix)

    def mismatch(self, announced: int, named: int, prefix: int) -> str:
        """See ``PeerLayout``."""
        return self.placement.mismatch(announced, named, prefix)

    def plan(self) -> TransferPlan:
        """What moves, this rank being the local side. Raises ``LayoutMismatch``."""
        return plan_transfer(
            self.mine.layout, self.theirs.layout, local_topology=self.mine.topology,
            remote_topology=self.theirs.topology, local_sends=self.role is Role.PREFILL,
        )  # fmt: skip

    def explain(self) -> tuple[Move, ...]:
        """What moves, for people."""
        prefill, decode = self._ordered
        return explain(prefill.layout, decode.layout, prefill.topology, decode.topology)


class Rules:
    """``LayoutRules`` of the rank that ``args`` describes. Pure: may be used under the lock."""

    def __init__(self, args: KVArgs, role: Role) -> None:
        self.layout = MemoryLayout.of(args)
        self._role = role
        self._mine = Place(self.layout, args.topology, args.page_size)
        self._layers = sorted({buffer.layer for buffer in args.kv.buffers})
        self._mapping = lru_cache(MAX_MAPPINGS)(self._map)

    def read(self, wire: dict[str, Any], fields: Fields) -> Pair:
        """The peer's layout and place, checked. Raises ``MessageError``."""
        layout = MemoryLayout.from_wire(wire)
        page_size = layout.pools[0].tokens or fields.get("page_size", self._mine.page_size)
        if not isinstance(page_size, int) or page_size < 1:
            raise MessageError(f"page_size must be an integer of at least 1, got {page_size!r:.64}")
        return Pair(self._role, self._mine, Place(layout, topology_of(fields), page_size))

    def differences(self, remote: PeerLayout, mine: Fields, theirs: Fields) -> list[Difference]:
        """See ``LayoutRules``."""
        assert isinstance(remote, Pair), "made by read()"
        here, there = remote.mine, remote.theirs
        free, told = handshake.INFORMATIVE, handshake.SHAPE
        if is_described(here.layout) and is_described(there.layout):
            free, told = free | handshake.SHAPE, frozenset()
        found = handshake.differences(mine, theirs, free)
        unfit = findings(here.layout, there.layout, Sides(here.topology, there.topology))
        rules = {difference.field: rule for rule, difference in unfit if rule is not None}
        # Fields say so by themselves, in the engine's words; what the layouts add to that is the rule.
        found = [replace(one, rule=rules[one.field]) if one.field in rules else one for one in found]
        more = [Difference(d.field, d.local, d.remote, rule or "") for rule, d in unfit if d.field not in told]
        found += more + _paged(remote)
        if not found:
            remote.work_out()
        return found

    def missing(self, sources: list[PeerLayout]) -> list[Difference]:
        """See ``LayoutRules``."""
        layouts = [pair.theirs.layout for pair in sources if isinstance(pair, Pair)]
        if not is_described(self.layout):
            return []  # equal topologies: each layout has been compared by itself
        return [Difference(d.field, d.local, d.remote, WHOLE) for d in missing_layers(self.layout, layouts)]

    def sources(self, sizes: tuple[int, int, int, int], dp_rank: int, page_size: int) -> SourceRanks:
        """See ``LayoutRules``."""
        return self._mapping(sizes, dp_rank, page_size)

    def _map(self, sizes: tuple[int, int, int, int], dp_rank: int, page_size: int) -> SourceRanks:
        found = source_ranks(self._mine.topology, sizes, dp_rank, self.layout, page_size=page_size)
        counts = found.destinations or (1,) * len(found.required)
        return SourceRanks(dict(zip(found.required, counts, strict=True)), found.dummies)

    def coverage(self, pages: int) -> Coverage:
        """A new count of what has been sent of a room of ``pages`` pages."""
        return Coverage(pages, self._layers)


def _paged(pair: Pair) -> list[Difference]:
    """State that is kept in pages (a sliding window's) goes item by item: it needs equal pages on both sides."""
    found = []
    for pool in pair.mine.layout.pools:
        other = pair.theirs.layout.pool(pool.name)
        if pool.name in (KV_POOL, AUX_POOL) or other is None or not (pool.tokens or other.tokens):
            continue
        mine, theirs = (
            f"{tokens} tokens, cp {place.topology.cp_rank} of {place.topology.cp_size}"
            for tokens, place in ((pool.tokens, pair.mine), (other.tokens, pair.theirs))
        )
        if mine != theirs:
            found.append(Difference(f"{pool.name}.tokens", mine, theirs, PAGED_STATE))
    return found


def topology_of(fields: Fields) -> Topology:
    """The peer's place, from its handshake fields. Raises ``MessageError``."""
    names = [f"{axis}_{what}" for axis in ("tp", "pp", "cp", "dp") for what in ("rank", "size")]
    values = {name: fields.get(name, 0 if name.endswith("rank") else 1) for name in names}
    if any(not isinstance(value, int) for value in values.values()):
        raise MessageError(f"ranks and sizes must be integers, got {values}")
    try:
        return Topology(**{name: int(value) for name, value in values.items()})
    except InvalidConfig as error:
        raise MessageError(str(error)) from error
