"""One side's memory as it crosses the wire in the handshake, and as the planner reads it: arrays, not objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kv_core.contract.enums import MemoryKind
from kv_core.contract.failures import InvalidConfig, MessageError
from kv_core.contract.items import ItemLayout
from kv_core.contract.memory import AUX_POOL, KV_POOL, NO_LAYER, KVArgs, Pool, Region
from kv_core.contract.transport import U64
from kv_core.layout.item_wire import index_items, items_from_wire, items_to_wire

MAX_BUFFERS = 65_536
"""Most buffers of one side, over all its pools."""
MAX_POOLS = 256
MAX_NAME = 128
"""Longest name of a pool or a part, in characters."""


@dataclass(frozen=True, eq=False)
class PoolLayout:
    """One pool of one side. ``address`` and ``item_len`` (uint64, bytes), ``layer`` (int64) and ``parts`` have one
    entry per buffer, in the pool's order. The arrays are read-only.

    ``items`` are the different descriptions of the pool's items and ``item_of`` (int64, one entry per buffer) says which
    of them a buffer has; both are empty for an opaque pool.
    """

    name: str
    kind: MemoryKind
    device_id: int
    num_items: int
    address: U64
    item_len: U64
    layer: npt.NDArray[np.int64]
    parts: tuple[str, ...]
    items: tuple[ItemLayout, ...] = ()
    item_of: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def tokens(self) -> int:
        """Tokens of an item; 0 if it is no page, or opaque."""
        return self.items[0].tokens if self.items else 0

    @property
    def num_buffers(self) -> int:
        """Number of buffers."""
        return len(self.parts)

    @property
    def item_bytes(self) -> int:
        """Bytes of one item over all buffers."""
        return sum(self.item_len.tolist())

    @classmethod
    def of(cls, pool: Pool) -> PoolLayout:
        """The layout of a pool. Raises ``InvalidConfig`` for what a peer would refuse to read."""
        _check_local(pool)
        return cls(
            pool.name, pool.kind, pool.device_id, pool.num_items,
            _frozen(np.array([buffer.address for buffer in pool.buffers], np.uint64)),
            _frozen(np.array([buffer.item_len for buffer in pool.buffers], np.uint64)),
            _frozen(np.array([buffer.layer for buffer in pool.buffers], np.int64)),
            tuple(buffer.part for buffer in pool.buffers),
            *index_items([buffer.item for buffer in pool.buffers]),
        )  # fmt: skip

    def to_wire(self) -> dict[str, Any]:
        """Plain values: arrays as little-endian bytes, 8 per entry. ``parts`` is empty where no buffer has a part."""
        return {
            "name": self.name, "kind": self.kind.value, "device_id": self.device_id, "num_items": self.num_items,
            "address": self.address.astype("<u8").tobytes(), "item_len": self.item_len.astype("<u8").tobytes(),
            "layer": self.layer.astype("<i8").tobytes(), "parts": list(self.parts) if any(self.parts) else [],
            **items_to_wire(self.items, self.item_of),
        }  # fmt: skip

    @classmethod
    def from_wire(cls, wire: object) -> PoolLayout:
        """Read what a peer sent and check it. Raises ``MessageError``."""
        fields = _mapping(wire, "a pool")
        name = _text(fields, "name", "a pool")
        if not name:
            raise MessageError("layout: a pool's name must not be empty")
        where = f"pool {name!r}"
        num_items = _integer(fields, "num_items", where, 1, 2**64 - 1)
        address = _array(fields, "address", where, "<u8").astype(np.uint64)
        item_len = _array(fields, "item_len", where, "<u8").astype(np.uint64)
        layer = _array(fields, "layer", where, "<i8").astype(np.int64)
        parts = _parts(fields, where, address.size)
        if not address.size or address.size != item_len.size or address.size != layer.size:
            raise MessageError(
                f"layout: {where}: address, item_len and layer must have one entry for each buffer, and at least one, "
                f"got {address.size}, {item_len.size} and {layer.size}"
            )
        _check_ranges(where, num_items, address, item_len, layer)
        items, item_of = items_from_wire(fields.get("items"), fields.get("item_of"), where, item_len)
        return cls(
            name, _kind(fields, where), _integer(fields, "device_id", where, -(2**31), 2**31 - 1), num_items,
            _frozen(address), _frozen(item_len), _frozen(layer), parts, items, item_of,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class MemoryLayout:
    """One side's pools in canonical order: KV, states, auxiliary rows."""

    pools: tuple[PoolLayout, ...]

    @classmethod
    def of(cls, args: KVArgs) -> MemoryLayout:
        """The layout of this rank's memory. Raises ``InvalidConfig`` for what a peer would refuse to read."""
        pools = tuple(args.pools())
        buffers = sum(len(pool.buffers) for pool in pools)
        if buffers > MAX_BUFFERS or len(pools) > MAX_POOLS:
            raise InvalidConfig(
                f"KVArgs describes {buffers} buffers in {len(pools)} pools: at most {MAX_BUFFERS} in {MAX_POOLS} "
                "fit into a handshake"
            )
        return cls(tuple(PoolLayout.of(pool) for pool in pools))

    def to_wire(self) -> dict[str, Any]:
        """A dict of strings, ints, lists and bytes."""
        return {"pools": [pool.to_wire() for pool in self.pools]}

    @classmethod
    def from_wire(cls, wire: object) -> MemoryLayout:
        """Read what a peer sent and check it; unknown keys are ignored. Raises ``MessageError`` with what is wrong."""
        pools = _mapping(wire, "the layout").get("pools")
        if not isinstance(pools, (list, tuple)) or not 0 < len(pools) <= MAX_POOLS:
            raise MessageError(f"layout: 'pools' must be a list of 1 to {MAX_POOLS} pools, got {_brief(pools)}")
        layouts = tuple(PoolLayout.from_wire(pool) for pool in pools)
        names = [pool.name for pool in layouts]
        if len(set(names)) != len(names):
            raise MessageError(f"layout: pool names must differ, got {_brief(names)}")
        if names[0] != KV_POOL or AUX_POOL in names[:-1]:
            raise MessageError(
                f"layout: pools must come as {KV_POOL!r}, then states, then {AUX_POOL!r} if there is one, "
                f"got {_brief(names)}"
            )
        buffers = sum(pool.num_buffers for pool in layouts)
        if buffers > MAX_BUFFERS:
            raise MessageError(f"layout: {buffers} buffers over all pools, at most {MAX_BUFFERS} are taken")
        return cls(layouts)

    def pool(self, name: str) -> PoolLayout | None:
        """The pool of this name, or None."""
        return next((pool for pool in self.pools if pool.name == name), None)

    def num_items(self, pool: str) -> int | None:
        """How many items the pool has, or None if there is no such pool."""
        found = self.pool(pool)
        return None if found is None else found.num_items

    def first_region(self, name: str) -> int:
        """Index of the pool's first buffer in ``regions()``. Raises ``ValueError`` if there is no such pool."""
        index = 0
        for pool in self.pools:
            if pool.name == name:
                return index
            index += pool.num_buffers
        raise ValueError(f"no pool {name!r} here, only {[pool.name for pool in self.pools]}")

    def regions(self) -> tuple[Region, ...]:
        """All buffers in canonical order, as ``contract.memory.regions_of`` numbers them."""
        regions: list[Region] = []
        for pool in self.pools:
            for address, item_len in zip(pool.address.tolist(), pool.item_len.tolist(), strict=True):
                nbytes = item_len * pool.num_items
                regions.append(Region(len(regions), address, nbytes, pool.kind, pool.device_id, pool.name))
        return tuple(regions)


def _frozen(array: Any) -> Any:
    array.setflags(write=False)
    return array


def _check_local(pool: Pool) -> None:
    wrong = [name for name in (pool.name, *(buffer.part for buffer in pool.buffers)) if not _is_name(name)]
    if wrong:
        raise InvalidConfig(
            f"pool {pool.name[:32]!r}: names of pools and parts must be printable and of at most {MAX_NAME} characters, "
            f"got {_brief(wrong[0])}"
        )
    layers = [buffer.layer for buffer in pool.buffers]
    if min(layers) < NO_LAYER or max(layers) >= 2**63:
        raise InvalidConfig(
            f"pool {pool.name!r}: layers must lie in {NO_LAYER}..2**63-1, got {min(layers)} to {max(layers)}"
        )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME and value.isprintable()


def _check_ranges(where: str, num_items: int, address: U64, item_len: U64, layer: npt.NDArray[np.int64]) -> None:
    # Bytes from an address to 2**64; the subtraction wraps, which is exact for every address but 0.
    room = np.zeros_like(address) - address
    bad = (address == 0) | (item_len == 0) | (item_len > room // np.uint64(num_items)) | (layer < NO_LAYER)
    if bad.any():
        at = int(bad.argmax())
        raise MessageError(
            f"layout: {where}: buffer {at} at {int(address[at]):#x} with {num_items} items of {int(item_len[at])} bytes, "
            f"layer {int(layer[at])}: address and item_len must be positive, layer at least {NO_LAYER}, and the end "
            "within 64 bits"
        )


def _brief(value: object) -> str:
    """A value from a peer as text for a message: bounded, printable, and never the whole of something huge."""
    if isinstance(value, (list, tuple)):
        return f"{len(value)} entries: {', '.join(_brief_one(entry) for entry in value[:8])}"
    return _brief_one(value)


def _brief_one(value: object) -> str:
    if isinstance(value, str):
        return repr(value[:32])
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return repr(value) if isinstance(value, (int, float, type(None))) else type(value).__name__


def _mapping(value: object, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise MessageError(f"layout: {what} must be a map, got {_brief(value)}")
    return value


def _text(fields: Mapping[Any, Any], key: str, where: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not _is_name(value):
        raise MessageError(
            f"layout: {where}: {key!r} must be a printable string of at most {MAX_NAME} characters, got {_brief(value)}"
        )
    return value


def _integer(fields: Mapping[Any, Any], key: str, where: str, low: int, high: int) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise MessageError(f"layout: {where}: {key!r} must be an integer in {low}..{high}, got {_brief(value)}")
    return value


def _kind(fields: Mapping[Any, Any], where: str) -> MemoryKind:
    value = fields.get("kind")
    if not isinstance(value, str) or value not in {kind.value for kind in MemoryKind}:
        known = ", ".join(kind.value for kind in MemoryKind)
        raise MessageError(f"layout: {where}: memory kind {_brief(value)} is not known here, only {known}")
    return MemoryKind(value)


def _array(fields: Mapping[Any, Any], key: str, where: str, dtype: str) -> npt.NDArray[Any]:
    value = fields.get(key)
    if not isinstance(value, bytes) or len(value) % 8 or len(value) > 8 * MAX_BUFFERS:
        size = f"{len(value)} bytes" if isinstance(value, bytes) else _brief(value)
        raise MessageError(
            f"layout: {where}: {key!r} must be bytes, 8 for each of at most {MAX_BUFFERS} buffers, got {size}"
        )
    return np.frombuffer(value, dtype)


def _parts(fields: Mapping[Any, Any], where: str, count: int) -> tuple[str, ...]:
    value = fields.get("parts")
    if not isinstance(value, (list, tuple)) or len(value) not in (0, count):
        raise MessageError(f"layout: {where}: 'parts' must be a list of {count} names or empty, got {_brief(value)}")
    if not all(map(_is_name, value)):
        raise MessageError(
            f"layout: {where}: each of 'parts' must be a printable string of at most {MAX_NAME} characters, "
            f"got {_brief(value)}"
        )
    return tuple(value) if value else ("",) * count
