"""What stands in the way of a plan between two ranks whose KV items are described: sizes may differ, within rules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kv_core.contract.memory import AUX_POOL, KV_POOL, NO_LAYER, Topology
from kv_core.layout.compare import aligned, listed, presence
from kv_core.layout.entries import Entries, entries_of, match
from kv_core.layout.memory_map import MemoryLayout, PoolLayout
from kv_core.layout.mismatch import Difference
from kv_core.layout.shares import divides

SHARES = "the units of a part must be shared evenly: their number must divide by tp_size, or tp_size by it"
OPAQUE = "a pool whose items are not described (Buffer.item) moves between equal tensor parallel sizes only"
MAX_RATIO = 1_024
"""How many of one side's pages fit into one of the other's: bounds what a plan takes."""
PAGES = f"one page size must divide the other, at most {MAX_RATIO} times, for each of a page's blocks"
NUMBERED = "between unequal pipeline sizes each buffer of the KV pool needs its layer"
STAGES = "as many pipeline stages must have the same layers, unless both sides' layers are known when ranks are mapped"
LONGEST = 2**62
MAX_RANKS = 4_096
"""Most ranks of one side's tensor, pipeline and context parallelism: bounds what is worked out for a peer's numbers."""
COUNT = f"tp_size x pp_size x cp_size, and dp_size, may be at most {MAX_RANKS}"


class Finding(NamedTuple):
    """A difference, and the rule of topology that it breaks; None: the two models or engines differ."""

    rule: str | None
    difference: Difference


class Sides(NamedTuple):
    """The two ranks' places. ``uneven``: as many stages may have other layers."""

    local: Topology
    remote: Topology
    uneven: bool = False


def described(layout: MemoryLayout) -> bool:
    """Whether the KV pool says what its items are made of: only then topologies may be unequal."""
    kv = layout.pool(KV_POOL)
    return kv is not None and bool(kv.items)


def item_findings(local: MemoryLayout, remote: MemoryLayout, places: Sides) -> list[Finding]:
    """Everything that stands in the way between two layouts that are both ``described``."""
    sizes = [max(place.tp_size * place.pp_size * place.cp_size, place.dp_size) for place in places[:2]]
    if max(sizes) > MAX_RANKS:
        return [Finding(COUNT, Difference("ranks", *map(str, sizes)))]
    found: list[Finding] = []
    for name in dict.fromkeys([pool.name for pool in local.pools] + [pool.name for pool in remote.pools]):
        mine, theirs = local.pool(name), remote.pool(name)
        if mine is None or theirs is None:
            # A pipeline stage may have no layer of a kind of state; rows of requests and pages every rank has.
            if name in (AUX_POOL, KV_POOL) or _same_layers(places):
                found.append(Finding(None, Difference(f"pool {name}", presence(mine), presence(theirs))))
        elif int(max(mine.item_len.max(), theirs.item_len.max())) > LONGEST:
            lengths = (str(pool.item_len.max()) for pool in (mine, theirs))
            found.append(Finding(None, Difference(f"{name}.item_len", *lengths)))
        else:
            found += _pool_findings(mine, theirs, places)
    return found


def _pool_findings(local: PoolLayout, remote: PoolLayout, places: Sides) -> list[Finding]:
    name, here, there = local.name, places.local, places.remote
    if name != AUX_POOL and bool(local.items) != bool(remote.items):
        kinds = ["described" if pool.items else "opaque" for pool in (local, remote)]
        return [Finding(None, Difference(f"{name}.item", *kinds))]
    if name != AUX_POOL and not local.items and here.tp_size != there.tp_size:
        return [Finding(OPAQUE, Difference(f"{name}: tp_size", str(here.tp_size), str(there.tp_size)))]
    mine, theirs = entries_of(local, here), entries_of(remote, there)
    found = _share_findings(name, mine, theirs, places) + _key_findings(name, mine, theirs, places)
    a, b = match(mine, theirs)
    for field in ("total", "unit_bytes"):
        told = f"{name}.{field if local.items and name != AUX_POOL else 'item_len'}"  # an opaque item is one unit
        columns = getattr(a, field).tolist(), getattr(b, field).tolist()
        found += [Finding(None, difference) for difference in aligned(told, *columns)]
    return found + _row_findings(local, remote, a, b)


def _share_findings(name: str, mine: Entries, theirs: Entries, places: Sides) -> list[Finding]:
    """Units that can't be shared by a side's tensor parallel size, and ranks that do not hold their share."""
    found: list[Finding] = []
    for total in sorted({*mine.total.tolist(), *theirs.total.tolist()}):
        if not all(divides(total, place.tp_size) for place in places[:2]):
            told = [f"{total} units by {place.tp_size} ranks" for place in places[:2]]
            found.append(Finding(SHARES, Difference(f"{name}.total", *told)))
    if found:
        return found
    told = [_wrong_share(mine, places.local), _wrong_share(theirs, places.remote)]
    return [Finding(None, Difference(f"{name}.units", *told))] if any(one != "right" for one in told) else []


def _wrong_share(entries: Entries, place: Topology) -> str:
    for units, total in zip(entries.units.tolist(), entries.total.tolist(), strict=True):
        share = max(total // place.tp_size, 1)
        if units != share:
            return f"{units} of {total}, its share is {share}"
    return "right"


def _same_layers(places: Sides) -> bool:
    """Whether the two ranks must have the same layers."""
    local, remote = places.local, places.remote
    if local.pp_size != remote.pp_size or local.pp_rank != remote.pp_rank:
        return False
    return local.pp_size == 1 or not places.uneven


def _key_findings(name: str, mine: Entries, theirs: Entries, places: Sides) -> list[Finding]:
    """Layers and parts that one side has and the other, which should, does not have."""
    found = []
    layers = sorted(set(mine.layer.tolist())), sorted(set(theirs.layer.tolist()))
    sizes = places.local.pp_size, places.remote.pp_size
    if layers[0] != layers[1] and _same_layers(places):
        rule = None if sizes[0] == 1 else STAGES
        found.append(Finding(rule, Difference(f"{name}.layer", listed(layers[0]), listed(layers[1]))))
    if name == KV_POOL and sizes[0] != sizes[1] and (NO_LAYER in layers[0] or NO_LAYER in layers[1]):
        found.append(Finding(NUMBERED, Difference(f"{name}.layer", listed(layers[0]), listed(layers[1]))))
    both = set(layers[0]) & set(layers[1])
    parts = [sorted((layer, part, n) for layer, part, n in entries.keys if layer in both) for entries in (mine, theirs)]
    if parts[0] != parts[1]:
        told = [listed(sorted({f"{part}#{n}" if n else part for _, part, n in side})) for side in parts]
        found.append(Finding(None, Difference(f"{name}.part", *told)))
    return found


def _row_findings(local: PoolLayout, remote: PoolLayout, a: Entries, b: Entries) -> list[Finding]:
    small, large = sorted((local.tokens, remote.tokens))
    tokens = Difference(f"{local.name}.tokens", str(local.tokens), str(remote.tokens))
    if small == 0:
        if large:
            return [Finding(None, tokens)]
    elif large % small or large // small > MAX_RATIO:
        return [Finding(PAGES, tokens)]
    scale = (local.tokens // small, remote.tokens // small) if small else (1, 1)
    uneven = (a.rows % scale[0] != 0) | (b.rows % scale[1] != 0) | (a.rows * scale[1] != b.rows * scale[0])
    if not uneven.any():
        return []
    told = [
        f"{listed(entries.rows[uneven].tolist())} in {pool.tokens} tokens"
        for pool, entries in ((local, a), (remote, b))
    ]
    return [Finding(None if scale == (1, 1) else PAGES, Difference(f"{local.name}.rows", *told))]


def missing_layers(destination: MemoryLayout, sources: Iterable[MemoryLayout]) -> tuple[Difference, ...]:
    """Layers of a decode rank's pools that none of the prefill ranks that serve it has: the room would lack them."""
    there: dict[str, set[int]] = {}
    for layout in sources:
        for pool in layout.pools:
            there.setdefault(pool.name, set()).update(pool.layer.tolist())
    found = []
    for pool in destination.pools:
        layers = set(pool.layer.tolist()) - {NO_LAYER} if pool.name != AUX_POOL else set()
        if layers - there.get(pool.name, set()):
            told = listed(sorted(layers)), listed(sorted(there.get(pool.name, set()))) or "none"
            found.append(Difference(f"{pool.name}.layer", *told))
    return tuple(found)
