"""The events: what happened to blocks of a KV cache, as an engine says it and as a router reads it.

Names, order of fields and defaults are SGLang 0.5.23's (``disaggregation/kv_events.py``), so that these structs, encoded as
they stand, *are* its wire format: a batch is an array of three, an event a map whose first key is ``type``, and what has its
default value is left out. Other formats: ``profiles``.

What kv-core adds are the four optional keys of ``AllBlocksCleared``. They are never set by an engine; they say why a consumer
must forget, and every consumer that reads maps skips keys that it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

Token = int | tuple[int, int]  # a pair: EAGLE's bigrams


class KVCacheEvent(msgspec.Struct, tag=True, omit_defaults=True, gc=False):
    """Base of the events. On the wire the class's name is the value of the key ``type``."""


class BlockStored(KVCacheEvent):
    """Blocks that can be reused from now on; each but the first continues the one before it.

    block_hashes: a name for each block, in SGLang the first 64 bits of the page's chained SHA-256, signed.
    parent_block_hash: the block that the first one continues; None at a prompt's beginning.
    token_ids: the tokens of all blocks in order, ``len(block_hashes) * block_size`` of them.
    block_size: tokens in a block; a router drops events whose block size is not its own.
    medium: where the blocks lie: "GPU", "CPU_PINNED", "DISK", "EXTERNAL" (SGLang), "CPU", "STORAGE" (vLLM).
    """

    block_hashes: Sequence[int]
    parent_block_hash: int | None
    token_ids: Sequence[Token]
    block_size: int
    lora_id: int | None
    medium: str | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    lora_name: str | None = None


class BlockRemoved(KVCacheEvent):
    """Blocks that can't be reused any more, in this medium."""

    block_hashes: Sequence[int]
    medium: str | None = None


class AllBlocksCleared(KVCacheEvent):
    """No block is left; or, with a ``reason``: forget everything, the publisher can't say what is left.

    reason: "overflow" (batches were lost before they had a number), "truncated" (replay was asked for batches that are no
    longer kept) or "restart" (replay was asked for batches of an earlier life of this publisher).
    lost_batches, lost_events: how much; None where it is not known. epoch: which life this is, Unix milliseconds.
    """

    reason: str | None = None
    lost_batches: int | None = None
    lost_events: int | None = None
    epoch: int | None = None


Event = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(msgspec.Struct, array_like=True, gc=False):
    """What is published at once: always three elements, also where the rank is nil.

    ts: Unix time in seconds. attn_dp_rank: the rank that the events are about; ``publish`` fills it in.
    """

    ts: float
    events: list[Event]
    attn_dp_rank: int | None = None


class KVEventBatch(EventBatch):
    """A batch of KV-cache events."""
