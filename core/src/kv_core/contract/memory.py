"""How an engine describes its memory and itself: pools of buffers, the model, and the rank's place in the topology."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kv_core.contract.enums import MemoryKind
from kv_core.contract.failures import InvalidConfig
from kv_core.contract.items import ItemLayout, units_held

KV_POOL = "kv"
"""Name of the pool that holds the KV pages."""
AUX_POOL = "aux"
"""Name of the pool that holds one auxiliary row (first token, logprobs, hidden state) per request."""
NO_LAYER = -1
"""``Buffer.layer`` of a buffer that belongs to no layer."""
MAX_ADDRESS = 2**64


@dataclass(frozen=True)
class Buffer:
    """One contiguous buffer of ``num_items`` items of ``item_len`` bytes; item i begins at ``address + i * item_len``.

    ``layer`` counts from the model's first layer, whatever pipeline stage holds it; draft layers go on after the last.
    ``item`` says what an item is made of: where both sides' KV pages say so, their topologies, page sizes and orders of bytes
    may differ. None: opaque, it moves whole, and a KV pool between equal topologies only.
    """

    address: int
    item_len: int
    num_items: int
    layer: int = NO_LAYER
    part: str = ""
    item: ItemLayout | None = None

    def __post_init__(self) -> None:
        if not 0 < self.address < MAX_ADDRESS:
            raise InvalidConfig(f"buffer address {self.address:#x} is no 64-bit address")
        if self.item_len <= 0 or self.num_items <= 0:
            raise InvalidConfig(
                f"buffer at {self.address:#x}: item_len {self.item_len} and num_items {self.num_items} must be positive"
            )
        if self.address + self.nbytes > MAX_ADDRESS:
            raise InvalidConfig(
                f"buffer at {self.address:#x}: {self.nbytes} bytes run past the end of the address space"
            )
        if self.item is not None and self.item.end > self.item_len:
            raise InvalidConfig(
                f"buffer at {self.address:#x}: its item's blocks take {self.item.end} bytes, item_len is {self.item_len}"
            )

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.item_len * self.num_items


@dataclass(frozen=True)
class Pool:
    """A list of buffers in one kind of memory that share one index space: index i is item i of every buffer.

    The KV pages are a pool (usually two buffers a layer), each state component is one, the auxiliary rows are one.
    """

    name: str
    buffers: tuple[Buffer, ...]
    kind: MemoryKind = MemoryKind.HOST
    device_id: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "buffers", tuple(self.buffers))
        if not self.name or not self.buffers:
            raise InvalidConfig(f"pool {self.name!r} needs a name and at least one buffer")
        if len({buffer.num_items for buffer in self.buffers}) != 1:
            raise InvalidConfig(f"pool {self.name!r}: all buffers must have the same number of items")
        tokens = {None if buffer.item is None else buffer.item.tokens for buffer in self.buffers}
        if len(tokens) != 1:
            raise InvalidConfig(
                f"pool {self.name!r}: all its buffers' items must be described, for one number of tokens, or none"
            )

    @property
    def num_items(self) -> int:
        """Number of items; indices run from 0 to one less."""
        return self.buffers[0].num_items

    @property
    def item_bytes(self) -> int:
        """Bytes of one item over all buffers (SGLang: ``kv_item_lens_sum``)."""
        return sum(buffer.item_len for buffer in self.buffers)

    @classmethod
    def uniform(
        cls,
        name: str,
        addresses: Sequence[int],
        item_len: int,
        num_items: int,
        *,
        layers: Sequence[int] | None = None,
        kind: MemoryKind = MemoryKind.HOST,
        device_id: int = 0,
        item: ItemLayout | None = None,
    ) -> Pool:
        """A pool of equal buffers; ``layers`` gives each buffer's layer (default: buffer i is layer i)."""
        numbers = range(len(addresses)) if layers is None else layers
        if len(numbers) != len(addresses):
            raise InvalidConfig(f"pool {name!r}: {len(addresses)} addresses but {len(numbers)} layers")
        buffers = (
            Buffer(a, item_len, num_items, layer, item=item) for a, layer in zip(addresses, numbers, strict=True)
        )
        return cls(name, tuple(buffers), kind, device_id)


@dataclass(frozen=True)
class Topology:
    """A rank's place: rank and size along tensor, pipeline, context and (attention) data parallelism."""

    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    cp_rank: int = 0
    cp_size: int = 1
    dp_rank: int = 0
    dp_size: int = 1

    def __post_init__(self) -> None:
        for axis in ("tp", "pp", "cp", "dp"):
            rank, size = getattr(self, f"{axis}_rank"), getattr(self, f"{axis}_size")
            if size < 1 or not 0 <= rank < size:
                raise InvalidConfig(f"{axis}_rank {rank} must lie in 0..{axis}_size-1, and {axis}_size is {size}")

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(tp, pp, cp, dp) sizes."""
        return (self.tp_size, self.pp_size, self.cp_size, self.dp_size)

    @property
    def ranks(self) -> tuple[int, int, int, int]:
        """(tp, pp, cp, dp) ranks: the key of this rank in its instance."""
        return (self.tp_rank, self.pp_rank, self.cp_rank, self.dp_rank)

    @property
    def world_size(self) -> int:
        """Number of ranks of the instance."""
        return self.tp_size * self.pp_size * self.cp_size * self.dp_size


@dataclass(frozen=True)
class KVArgs:
    """What one rank tells core about its memory and its model. Survives pickling: engines spawn processes.

    ``extra`` holds further named values that must be equal on both sides (speculative configuration, say).
    ``page_size`` is in tokens. ``num_kv_heads`` and ``head_dim`` are the model's, not the rank's. ``dtype`` and ``kv_layout``
    are opaque names to core: they must be equal on both sides, but for ``kv_layout`` where both describe their items.
    """

    kv: Pool
    aux: Pool | None = None
    states: tuple[Pool, ...] = ()
    page_size: int = 16
    dtype: str = "bfloat16"
    kv_layout: str = "NHD"
    model: str = ""
    revision: str = ""
    num_kv_heads: int = 0
    head_dim: int = 0
    topology: Topology = field(default_factory=Topology)
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "states", tuple(self.states))
        names = [pool.name for pool in self.pools()]
        if len(set(names)) != len(names):
            raise InvalidConfig(f"pool names must differ, got {names}")
        if self.kv.name != KV_POOL or (self.aux is not None and self.aux.name != AUX_POOL):
            raise InvalidConfig(
                f"the KV pool must be named {KV_POOL!r} and the auxiliary pool {AUX_POOL!r}, got {names}"
            )
        if self.page_size < 1:
            raise InvalidConfig(f"page_size is {self.page_size}, must be at least 1 token")
        self._check_items()

    def _check_items(self) -> None:
        """What the items' descriptions say must be this rank's share."""
        page = self.kv.buffers[0].item
        if page is not None and page.tokens != self.page_size:
            raise InvalidConfig(f"page_size is {self.page_size}, but a KV page is described with {page.tokens} tokens")
        size = self.topology.tp_size
        items = {
            (pool.name, buffer.item) for pool in self.pools() for buffer in pool.buffers if buffer.item is not None
        }
        for name, item in items:
            for block in item.blocks:
                if block.units != units_held(block.total, size):
                    raise InvalidConfig(
                        f"pool {name!r}, part {block.part!r}: {block.units} units here, but with {block.total} in the model "
                        f"and tp_size {size} a rank holds {units_held(block.total, size)}"
                    )

    def pools(self) -> Iterator[Pool]:
        """KV, then the state components, then the auxiliary pool: the canonical order, also of regions."""
        yield self.kv
        yield from self.states
        if self.aux is not None:
            yield self.aux

    def pool(self, name: str) -> Pool | None:
        """The pool of this name, or None."""
        return next((pool for pool in self.pools() if pool.name == name), None)


@dataclass(frozen=True)
class Region:
    """One buffer as a transport registers it. ``index`` is its place in the canonical order of this side's buffers."""

    index: int
    address: int
    nbytes: int
    kind: MemoryKind = MemoryKind.HOST
    device_id: int = 0
    pool: str = KV_POOL


def regions_of(args: KVArgs) -> tuple[Region, ...]:
    """All buffers of ``args`` as regions, numbered in canonical order (pools as in ``KVArgs.pools``, buffers in order)."""
    flat = ((pool, buffer) for pool in args.pools() for buffer in pool.buffers)
    return tuple(
        Region(index, buffer.address, buffer.nbytes, pool.kind, pool.device_id, pool.name)
        for index, (pool, buffer) in enumerate(flat)
    )
