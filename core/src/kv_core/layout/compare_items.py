"""What stands in the way of a plan between two ranks whose KV items are described: sizes may differ, within rules."""

from __future__ import annotations

from typing import NamedTuple

from kv_core.contract.memory import AUX_POOL, KV_POOL, NO_LAYER, Topology
from kv_core.layout.compare import aligned, listed, presence
from kv_core.layout.entries import Entries, entries_of, match
from kv_core.layout.memory_map import MemoryLayout, PoolLayout
from kv_core.layout.mismatch import Difference
from kv_core.layout.shares import divides

SHARES = "the units of a part must be shared evenly: their number must divide by tp_size, or tp_size by it"
OPAQUE = "a pool whose items are not described (Buffer.item) moves between equal tensor parallel sizes only"
PAGES = "one page size must divide the other, for each of a page's blocks"
NUMBERED = "between unequal pipeline sizes each buffer of the KV pool needs its layer"
STAGES = "between equal pipeline sizes of 1 both sides must have the same layers"
LONGEST = 2**62


class Finding(NamedTuple):
    """A difference, and the rule of topology that it breaks; None: the two models or engines differ."""

    rule: str | None
    difference: Difference


class Sides(NamedTuple):
    """The two ranks' places."""

    local: Topology
    remote: Topology


def described(layout: MemoryLayout) -> bool:
    """Whether the KV pool says what its items are made of: only then topologies may be unequal."""
    kv = layout.pool(KV_POOL)
    return kv is not None and bool(kv.items)


def item_findings(local: MemoryLayout, remote: MemoryLayout, places: Sides) -> list[Finding]:
    """Everything that stands in the way between two layouts that are both ``described``."""
    found: list[Finding] = []
    for name in dict.fromkeys([pool.name for pool in local.pools] + [pool.name for pool in remote.pools]):
        mine, theirs = local.pool(name), remote.pool(name)
        if mine is None or theirs is None:
            # A pipeline stage may have no layer of a kind of state; rows of requests and pages every rank has.
            if name in (AUX_POOL, KV_POOL) or places.local.pp_size == places.remote.pp_size:
                found.append(Finding(None, Difference(f"pool {name}", presence(mine), presence(theirs))))
        elif int(max(mine.item_len.max(), theirs.item_len.max())) > LONGEST:
            lengths = (str(pool.item_len.max()) for pool in (mine, theirs))
            found.append(Finding(None, Difference(f"{name}.item_len", *lengths)))
        else:
            found += _pool_findings(mine, theirs, places)
    return found


def _pool_findings(local: PoolLayout, remote: PoolLayout, places: Sides) -> list[Finding]:
    name, here, there = local.name, *places
    if name != AUX_POOL and bool(local.items) != bool(remote.items):
        told = ["described" if pool.items else "opaque" for pool in (local, remote)]
        return [Finding(None, Difference(f"{name}.item", *told))]
    if name != AUX_POOL and not local.items and here.tp_size != there.tp_size:
        return [Finding(OPAQUE, Difference(f"{name}: tp_size", str(here.tp_size), str(there.tp_size)))]
    mine, theirs = entries_of(local, here), entries_of(remote, there)
    found = _share_findings(name, mine, theirs, places) + _key_findings(name, mine, theirs, places)
    a, b = match(mine, theirs)
    for field in ("total", "unit_bytes"):
        # An opaque item is one unit.
        told = field if local.items or name == AUX_POOL else "item_len"
        found += [
            Finding(None, d) for d in aligned(f"{name}.{told}", getattr(a, field).tolist(), getattr(b, field).tolist())
        ]
    return found + _row_findings(local, remote, a, b)


def _share_findings(name: str, mine: Entries, theirs: Entries, places: Sides) -> list[Finding]:
    """Units that can't be shared by a side's tensor parallel size, and ranks that do not hold their share."""
    found = []
    for total in sorted({*mine.total.tolist(), *theirs.total.tolist()}):
        if not all(divides(total, place.tp_size) for place in places):
            told = [f"{total} units by {place.tp_size} ranks" for place in places]
            found.append(Finding(SHARES, Difference(f"{name}.total", *told)))
    if not found:
        for side, entries, place in (("local", mine, places.local), ("remote", theirs, places.remote)):
            share = [max(total // place.tp_size, 1) for total in entries.total.tolist()]
            wrong = [n for n, units in enumerate(entries.units.tolist()) if units != share[n]]
            if wrong:
                told = f"{entries.units[wrong[0]]} of {entries.total[wrong[0]]}, its share is {share[wrong[0]]}"
                found.append(
                    Finding(
                        None,
                        Difference(f"{name}.units", *(told if one == side else "-" for one in ("local", "remote"))),
                    )
                )
    return found


def _key_findings(name: str, mine: Entries, theirs: Entries, places: Sides) -> list[Finding]:
    """Layers and parts that one side has and the other, which should, does not have."""
    found = []
    layers = sorted(set(mine.layer.tolist())), sorted(set(theirs.layer.tolist()))
    sizes = places.local.pp_size, places.remote.pp_size
    if layers[0] != layers[1] and sizes == (1, 1):
        found.append(Finding(None, Difference(f"{name}.layer", listed(layers[0]), listed(layers[1]))))
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
    elif large % small:
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
