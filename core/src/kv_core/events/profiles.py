"""Wire profiles: one batch, four ways to write it down. Pure; an encoder is used by one thread at a time.

========  ==============================================================================================================
map       SGLang 0.5.23: maps, signed hashes, defaults left out. The default. Read by Dynamo, sgl-router, llm-d's vLLM adapter.
vllm      vLLM 0.33.0: maps, unsigned hashes, ``medium`` and ``lora_name`` always there: its typed decoder refuses an event
          without them. ``cache_salt`` goes along as a key that it skips.
legacy    SGLang before #37482, vLLM up to 0.23: tagged arrays, signed hashes. Read by llm-d's SGLang adapter
          (which reads no maps), kthena, AIBrix (first four fields), Infera. Has no place for
          ``cache_salt`` and ``session_id``, nor for a reason in ``AllBlocksCleared``.
dynamo    as ``map``, for an engine whose hashes are namespaced (``in_namespace``).
========  ==============================================================================================================

Golden bytes: ``peers.md`` sections 5.2 and 5.3, which were made with the two engines' own structs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import msgspec

from kv_core.contract.failures import InvalidConfig
from kv_core.events.decode import decode_batch
from kv_core.events.hashes import namespace_seed, namespaced, to_signed, to_unsigned
from kv_core.events.schema import AllBlocksCleared, BlockRemoved, BlockStored, Event, EventBatch, KVEventBatch


class WireProfile(ABC):
    """One way to write a batch."""

    name: str

    @abstractmethod
    def encode(self, batch: EventBatch) -> bytes:
        """The payload frame. Raises TypeError or msgspec's errors for events that are none."""

    def decode(self, payload: bytes) -> KVEventBatch:
        """Read a payload of any profile; hashes come out signed. Raises ``SchemaError``."""
        return decode_batch(payload).batch


class MapProfile(WireProfile):
    """SGLang 0.5.23: the structs of ``schema`` as they stand."""

    name = "map"

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode

    def encode(self, batch: EventBatch) -> bytes:
        """See the base class."""
        return self._encode(batch)


class DynamoProfile(MapProfile):
    """SGLang 0.5.23 with ``"format": "dynamo"``: the same bytes for hashes that carry their namespace."""

    name = "dynamo"


class _Built(WireProfile):
    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode

    def encode(self, batch: EventBatch) -> bytes:
        """See the base class."""
        return self._encode([batch.ts, [self.event(event) for event in batch.events], batch.attn_dp_rank])

    @abstractmethod
    def event(self, event: Event) -> Any:
        """One event as what msgpack writes."""


class VllmProfile(_Built):
    """vLLM 0.33.0 (``vllm/distributed/kv_events.py``), readable for its typed decoder."""

    name = "vllm"

    def event(self, event: Event) -> dict[str, Any]:
        """A map in vLLM's order of keys."""
        if isinstance(event, BlockStored):
            parent = event.parent_block_hash
            raw = {
                "type": "BlockStored", "block_hashes": [to_unsigned(block) for block in event.block_hashes],
                "parent_block_hash": None if parent is None else to_unsigned(parent), "token_ids": event.token_ids,
                "block_size": event.block_size, "lora_id": event.lora_id, "medium": event.medium,
                "lora_name": event.lora_name,
            }  # fmt: skip
            extra = {"session_id": event.session_id, "cache_salt": event.cache_salt}
            return raw | {key: value for key, value in extra.items() if value is not None}
        if isinstance(event, BlockRemoved):
            hashes = [to_unsigned(block) for block in event.block_hashes]
            return {"type": "BlockRemoved", "block_hashes": hashes, "medium": event.medium}
        if isinstance(event, AllBlocksCleared):
            raw = {"reason": event.reason, "lost_batches": event.lost_batches}
            raw |= {"lost_events": event.lost_events, "epoch": event.epoch}
            return {"type": "AllBlocksCleared"} | {key: value for key, value in raw.items() if value is not None}
        raise TypeError(f"not a KV-cache event: {event!r}"[:300])


class LegacyProfile(_Built):
    """Tagged arrays, as both engines wrote before they changed to maps."""

    name = "legacy"

    def event(self, event: Event) -> list[Any]:
        """An array: the class's name, then SGLang's fields in order; ``lora_name`` follows where there is one."""
        if isinstance(event, BlockStored):
            parent = event.parent_block_hash
            raw = [
                "BlockStored", [to_signed(block) for block in event.block_hashes],
                None if parent is None else to_signed(parent), event.token_ids, event.block_size, event.lora_id,
                event.medium,
            ]  # fmt: skip
            return raw if event.lora_name is None else [*raw, event.lora_name]
        if isinstance(event, BlockRemoved):
            return ["BlockRemoved", [to_signed(block) for block in event.block_hashes], event.medium]
        if isinstance(event, AllBlocksCleared):
            return ["AllBlocksCleared"]
        raise TypeError(f"not a KV-cache event: {event!r}"[:300])


PROFILES: dict[str, type[WireProfile]] = {
    profile.name: profile for profile in (MapProfile, VllmProfile, LegacyProfile, DynamoProfile)
}


def make_profile(name: str) -> WireProfile:
    """A new codec by its name. Raises ``InvalidConfig`` for an unknown one."""
    try:
        return PROFILES[name]()
    except KeyError:
        raise InvalidConfig(f"unknown wire profile {name!r}: expected one of {', '.join(PROFILES)}") from None


def in_namespace(
    event: BlockStored | BlockRemoved, *, extra_key: str | None, cache_salt: str | None, lora_name: str | None = None
) -> BlockStored | BlockRemoved:
    """The event with hashes that no other namespace shares; for the cache, which knows a block's extra key and salt.

    A removal must be given the same key and salt as the event that stored the block. Without both nothing changes.
    """
    seed = namespace_seed(extra_key, cache_salt)
    hashes = [namespaced(block, seed) for block in event.block_hashes]
    if isinstance(event, BlockRemoved):
        return BlockRemoved(block_hashes=hashes, medium=event.medium)
    parent = event.parent_block_hash
    return msgspec.structs.replace(
        event,
        block_hashes=hashes,
        parent_block_hash=None if parent is None else namespaced(parent, seed),
        cache_salt=cache_salt if cache_salt is not None else event.cache_salt,
        lora_name=lora_name if lora_name is not None else event.lora_name,
    )
