"""Reads a batch in any known profile, and says what some consumers would not like about it.

Maps (SGLang from 0.5.23, vLLM from 0.24) and tagged arrays (both before that, and what llm-d's SGLang adapter reads today) are
told apart event by event, as Dynamo does. Unknown keys and further array elements are skipped; an unknown ``type`` is an error,
because it costs Dynamo's indexer the whole batch (measured with 1.6.1). Hashes come out signed, whatever was on the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kv_core.events.errors import SchemaError
from kv_core.events.hashes import to_signed
from kv_core.events.schema import AllBlocksCleared, BlockRemoved, BlockStored, Event, KVEventBatch, Token

MAX_HASHES = 65_536
"""More blocks in one event than this: sgl-router refuses the event."""

STORED_KEYS = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name")
REMOVED_KEYS = ("block_hashes", "medium")
TYPES = ("BlockStored", "BlockRemoved", "AllBlocksCleared")
_ELSE = {
    "BlockStored": {
        "cache_salt", "session_id", "extra_keys", "group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window",
        "locality", "ownership", "lookahead_token_ids", "block_mm_infos", "source_kind",
    },
    "BlockRemoved": {"group_idx", "locality", "ownership", "kv_cache_spec_kind", "kv_cache_spec_sliding_window", "source_kind"},
    "AllBlocksCleared": {"reason", "lost_batches", "lost_events", "epoch", "source_kind"},
}  # fmt: skip
_decode = msgspec.msgpack.Decoder().decode


@dataclass
class Decoded:
    """A batch and what was noticed while it was read. ``shapes``: "map", "vllm" (all that its typed decoder needs), "array"."""

    batch: KVEventBatch
    shapes: set[str] = field(default_factory=set)
    remarks: list[tuple[str, str]] = field(default_factory=list)


def decode_batch(payload: bytes) -> Decoded:
    """Read a payload. Raises ``SchemaError``, with the place in the batch, if it is in no known profile."""
    try:
        raw = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SchemaError(f"no msgpack: {error}") from None
    if not isinstance(raw, list) or len(raw) < 2:
        raise SchemaError("a batch is an array [ts, events, rank]", "batch")
    ts, events, rank = raw[0], raw[1], raw[2] if len(raw) > 2 else None
    found = Decoded(KVEventBatch(_number(ts, "batch[0] (ts)"), [], _int_or_none(rank, "batch[2] (rank)")))
    if len(raw) != 3:
        found.remarks.append(
            ("batch_length", f"the batch has {len(raw)} elements: Dynamo's indexer reads three, no others")
        )
    if not isinstance(events, list):
        raise SchemaError(f"expected an array of events, got {type(events).__name__}", "batch[1]")
    for index, event in enumerate(events):
        found.batch.events.append(_event(event, f"event {index}", found))
    return found


def _event(raw: Any, path: str, found: Decoded) -> Event:
    if isinstance(raw, dict):
        return _from_map(raw, path, found)
    if isinstance(raw, list):
        return _from_array(raw, path, found)
    raise SchemaError(f"an event is a map or an array, not {type(raw).__name__}", path)


def _from_map(raw: Mapping[str, Any], path: str, found: Decoded) -> Event:
    kind = raw.get("type")
    _known_type(kind, path)
    if next(iter(raw)) != "type":
        found.remarks.append(("type_not_first", f"{path}: `type` is not the first key"))
    values = {key: value for key, value in raw.items() if key != "type"}
    named = {"BlockStored": STORED_KEYS, "BlockRemoved": REMOVED_KEYS}.get(str(kind), ())
    unknown = sorted(str(key) for key in values if key not in named and key not in _ELSE[str(kind)])
    if unknown:
        found.remarks.append(("unknown_keys", f"{path}: keys that no known consumer reads: {', '.join(unknown)}"))
    full = all(key in values for key in named)
    found.shapes.add("vllm" if full and kind != "AllBlocksCleared" else "map")
    return _BUILDERS[str(kind)](values, path, found)


def _from_array(raw: Sequence[Any], path: str, found: Decoded) -> Event:
    kind = raw[0] if raw else None
    _known_type(kind, path)
    found.shapes.add("array")
    if kind == "AllBlocksCleared":
        return AllBlocksCleared()
    named = STORED_KEYS if kind == "BlockStored" else REMOVED_KEYS
    return _BUILDERS[str(kind)](dict(zip(named, raw[1:], strict=False)), path, found)


def _stored(values: Mapping[str, Any], path: str, found: Decoded) -> Event:
    for key in ("block_hashes", "token_ids", "block_size"):
        if key not in values:
            raise SchemaError(f"`{key}` is missing", path)
    parent = values.get("parent_block_hash")
    return BlockStored(
        block_hashes=_hashes(values["block_hashes"], f"{path}.block_hashes", found),
        parent_block_hash=None if parent is None else _hash(parent, f"{path}.parent_block_hash", found),
        token_ids=_tokens(values["token_ids"], f"{path}.token_ids"),
        block_size=_int(values["block_size"], f"{path}.block_size"),
        lora_id=_int_or_none(values.get("lora_id"), f"{path}.lora_id"),
        medium=_text_or_none(values.get("medium"), f"{path}.medium"),
        cache_salt=_text_or_none(values.get("cache_salt"), f"{path}.cache_salt"),
        session_id=_text_or_none(values.get("session_id"), f"{path}.session_id"),
        lora_name=_text_or_none(values.get("lora_name"), f"{path}.lora_name"),
    )


def _removed(values: Mapping[str, Any], path: str, found: Decoded) -> Event:
    if "block_hashes" not in values:
        raise SchemaError("`block_hashes` is missing", path)
    return BlockRemoved(
        block_hashes=_hashes(values["block_hashes"], f"{path}.block_hashes", found),
        medium=_text_or_none(values.get("medium"), f"{path}.medium"),
    )


def _cleared(values: Mapping[str, Any], path: str, _found: Decoded) -> Event:
    numbers = {key: _int_or_none(values.get(key), f"{path}.{key}") for key in ("lost_batches", "lost_events", "epoch")}
    return AllBlocksCleared(reason=_text_or_none(values.get("reason"), f"{path}.reason"), **numbers)


_BUILDERS: dict[str, Callable[[Mapping[str, Any], str, Decoded], Event]] = {
    "BlockStored": _stored, "BlockRemoved": _removed, "AllBlocksCleared": _cleared,
}  # fmt: skip


def _known_type(kind: Any, path: str) -> None:
    if kind not in TYPES:
        raise SchemaError(
            f"type {kind!r}: expected one of {', '.join(TYPES)}. Dynamo drops the whole batch for an unknown one", path
        )


def _hashes(value: Any, path: str, found: Decoded) -> list[int]:
    if not isinstance(value, list):
        raise SchemaError(f"expected an array of hashes, got {type(value).__name__}", path)
    if len(value) > MAX_HASHES:
        found.remarks.append(("many_hashes", f"{path}: {len(value)} hashes; sgl-router refuses more than {MAX_HASHES}"))
    return [_hash(item, f"{path}[{index}]", found) for index, item in enumerate(value)]


def _hash(value: Any, path: str, found: Decoded) -> int:
    if isinstance(value, bytes) and len(value) >= 8:
        found.remarks.append(("bytes_hash", f"{path}: a hash of bytes: Dynamo drops the batch, sgl-router the event"))
        return int.from_bytes(value[-8:], "big", signed=True)
    if isinstance(value, int) and not isinstance(value, bool):
        return to_signed(value)
    raise SchemaError(f"a hash is a number of 64 bits, not {type(value).__name__}", path)


def _tokens(value: Any, path: str) -> list[Token]:
    if not isinstance(value, list):
        raise SchemaError(f"expected an array of tokens, got {type(value).__name__}", path)
    tokens: list[Token] = []
    for item in value:
        if type(item) is int:
            tokens.append(item)
        elif isinstance(item, list) and len(item) == 2 and all(type(part) is int for part in item):
            tokens.append((item[0], item[1]))
        else:
            raise SchemaError(f"a token is a number or a pair of numbers, not {item!r}"[:200], path)
    return tokens


def _number(value: Any, path: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise SchemaError(f"expected a number, got {type(value).__name__}", path)


def _int(value: Any, path: str) -> int:
    if type(value) is int:
        return value
    raise SchemaError(f"expected a whole number, got {type(value).__name__}", path)


def _int_or_none(value: Any, path: str) -> int | None:
    return None if value is None else _int(value, path)


def _text_or_none(value: Any, path: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise SchemaError(f"expected text or nil, got {type(value).__name__}", path)
