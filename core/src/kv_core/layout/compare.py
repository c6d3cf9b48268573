"""Field by field: what differs between two memory layouts, told compactly, however many buffers there are."""

from __future__ import annotations

from collections.abc import Sequence

from kv_core.layout.memory_map import MemoryLayout, PoolLayout
from kv_core.layout.mismatch import Difference

MAX_GROUPS = 4
"""Differing buffers with the same two values are told together; beyond this many groups the whole lists are."""
MAX_TEXT = 400


def layout_differences(local: MemoryLayout, remote: MemoryLayout) -> tuple[Difference, ...]:
    """Every field that must be equal and is not. Kinds of memory, devices and numbers of items may differ."""
    found: list[Difference] = []
    names = dict.fromkeys([pool.name for pool in local.pools] + [pool.name for pool in remote.pools])
    for name in names:
        mine, theirs = local.pool(name), remote.pool(name)
        if mine is None or theirs is None:
            found.append(Difference(f"pool {name}", presence(mine), presence(theirs)))
        else:
            found += _pool_differences(mine, theirs)
    return tuple(found)


def presence(pool: PoolLayout | None) -> str:
    """What a side has of a pool."""
    return "absent" if pool is None else f"{pool.num_buffers} buffers"


def _pool_differences(local: PoolLayout, remote: PoolLayout) -> list[Difference]:
    columns = (
        ("item_len", local.item_len.tolist(), remote.item_len.tolist()),
        ("layer", local.layer.tolist(), remote.layer.tolist()),
        ("part", local.parts, remote.parts),
    )
    if local.num_buffers == remote.num_buffers:
        return [d for field, mine, theirs in columns for d in aligned(f"{local.name}.{field}", mine, theirs)]
    found = [Difference(f"{local.name}.buffers", str(local.num_buffers), str(remote.num_buffers))]
    for field, mine, theirs in columns:
        # Lists of unequal length have no positions in common: what can differ is which values occur at all.
        if set(mine) != set(theirs):
            found.append(Difference(f"{local.name}.{field}", listed(sorted(set(mine))), listed(sorted(set(theirs)))))
    return found


def aligned(field: str, local: Sequence[object], remote: Sequence[object]) -> list[Difference]:
    """Where two lists of one length differ, positions with the same two values told together."""
    groups: dict[tuple[object, object], list[int]] = {}
    for position, pair in enumerate(zip(local, remote, strict=True)):
        if pair[0] != pair[1]:
            groups.setdefault(pair, []).append(position)
    if len(groups) > MAX_GROUPS:
        return [Difference(field, listed(local), listed(remote))]
    return [
        Difference(f"{field}[{listed(positions)}]", _value(mine), _value(theirs))
        for (mine, theirs), positions in groups.items()
    ]


def _value(value: object) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def listed(values: Sequence[object]) -> str:
    """``0..31`` for values that count upwards, ``4096 x64`` for equal ones, joined by commas."""
    texts: list[str] = []
    first = 0
    while first < len(values):
        last, step = _run(values, first)
        count = last - first + 1
        start = _value(values[first])
        texts.append(start if count == 1 else f"{start} x{count}" if step == 0 else f"{start}..{_value(values[last])}")
        first = last + 1
    text = ", ".join(texts)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(values)} values)"


def _run(values: Sequence[object], first: int) -> tuple[int, int]:
    """Position of the last value of the run that begins at ``first``, and its step: 0 or 1."""
    begin = values[first]
    for step in (0, 1):
        last = first
        while last + 1 < len(values):
            expected = begin + step * (last + 1 - first) if isinstance(begin, int) else begin
            if values[last + 1] != expected or (step and not isinstance(begin, int)):
                break
            last += 1
        if last > first:
            return last, step
    return first, 0
