"""Each wire profile against golden bytes, against the engines' own typed schemas, and there and back."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_core.contract.failures import InvalidConfig
from kv_core.events import (
    PROFILES,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
    SchemaError,
    decode_batch,
    make_profile,
    to_signed,
)

# shared/research/peers.md section 5.2: made with SGLang 0.5.23's and vLLM 0.33.0's own structs.
GOLDEN = {
    ("map", "stored"): "93cb3ff80000000000009187a474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657391ffb1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f696473920102aa626c6f636b5f73697a6502a76c6f72615f6964c0a66d656469756da347505500",
    ("map", "removed"): "93cb3ff80000000000009183a474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391ffa66d656469756da347505500",
    ("map", "cleared"): "93cb3ff80000000000009181a474797065b0416c6c426c6f636b73436c656172656400",
    ("map", "cleared nil"): "93cb3ff80000000000009181a474797065b0416c6c426c6f636b73436c6561726564c0",
    ("legacy", "stored"): "93cb3ff80000000000009197ab426c6f636b53746f72656491ffc092010202c0a347505500",
    ("legacy", "removed"): "93cb3ff80000000000009193ac426c6f636b52656d6f76656491ffa347505500",
    ("legacy", "cleared"): "93cb3ff80000000000009191b0416c6c426c6f636b73436c656172656400",
    ("vllm", "stored 1"): "93cb3ff80000000000009188a474797065ab426c6f636b53746f726564ac626c6f636b5f6861736865739101b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f696473920102aa626c6f636b5f73697a6502a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c000",
}  # fmt: skip


def gpu(block: int) -> BlockStored:
    return BlockStored(
        block_hashes=[block], parent_block_hash=None, token_ids=[1, 2], block_size=2, lora_id=None, medium="GPU"
    )


BATCHES = {
    "stored": KVEventBatch(1.5, [gpu(-1)], 0),
    "stored 1": KVEventBatch(1.5, [gpu(1)], 0),
    "removed": KVEventBatch(1.5, [BlockRemoved([-1], "GPU")], 0),
    "cleared": KVEventBatch(1.5, [AllBlocksCleared()], 0),
    "cleared nil": KVEventBatch(1.5, [AllBlocksCleared()]),
}


@pytest.mark.parametrize(("profile", "what"), GOLDEN)
def test_golden_bytes(profile, what):
    assert make_profile(profile).encode(BATCHES[what]).hex() == GOLDEN[profile, what]


@pytest.mark.parametrize("what", BATCHES)
def test_dynamo_writes_what_map_writes(what):
    assert make_profile("dynamo").encode(BATCHES[what]) == make_profile("map").encode(BATCHES[what])


hashes = st.integers(-(2**63), 2**63 - 1)
tokens = st.integers(0, 2**31 - 1)
text = st.none() | st.text(max_size=8)
events = st.one_of(
    st.builds(
        BlockStored,
        block_hashes=st.lists(hashes, max_size=4),
        parent_block_hash=st.none() | hashes,
        token_ids=st.lists(tokens, max_size=8) | st.lists(st.tuples(tokens, tokens), max_size=8),
        block_size=st.integers(1, 64),
        lora_id=st.none() | st.integers(0, 100),
        medium=text,
        cache_salt=text,
        session_id=text,
        lora_name=text,
    ),
    st.builds(BlockRemoved, block_hashes=st.lists(hashes, max_size=4), medium=text),
    st.builds(
        AllBlocksCleared,
        reason=st.none() | st.sampled_from(["overflow", "truncated", "restart"]),
        lost_batches=st.none() | st.integers(0, 2**40),
        lost_events=st.none() | st.integers(0, 2**40),
        epoch=st.none() | st.integers(0, 2**41),
    ),
)
batches = st.builds(
    KVEventBatch,
    ts=st.floats(0, 2e9),
    events=st.lists(events, max_size=4),
    attn_dp_rank=st.none() | st.integers(0, 255),
)


def in_legacy(event):
    """What the arrays have a place for."""
    if isinstance(event, AllBlocksCleared):
        return AllBlocksCleared()
    if isinstance(event, BlockStored):
        return msgspec.structs.replace(event, cache_salt=None, session_id=None)
    return event


@pytest.mark.parametrize("name", PROFILES)
@settings(max_examples=60, deadline=None)
@given(batches)
def test_there_and_back(name, batch):
    profile = make_profile(name)
    back = profile.decode(profile.encode(batch))
    wanted = [in_legacy(event) for event in batch.events] if name == "legacy" else batch.events
    assert back == KVEventBatch(batch.ts, list(wanted), batch.attn_dp_rank)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64) | batches.map(lambda batch: make_profile("legacy").encode(batch)[:-1]))
def test_nonsense_is_a_schema_error_and_nothing_else(payload):
    with contextlib.suppress(SchemaError):
        decode_batch(payload)


@settings(max_examples=100, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.sampled_from(["type", "BlockStored", "BlockRemoved"]) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["type", "block_hashes", "token_ids", "block_size", "x"]), inner),
    max_leaves=20,
))  # fmt: skip
def test_wrong_shapes_are_schema_errors_and_nothing_else(raw):
    with contextlib.suppress(SchemaError):
        decode_batch(msgspec.msgpack.encode([1.0, [raw], 0]))


# What vLLM 0.33.0's own consumers decode with (vllm/distributed/kv_events.py), written down anew.
class VllmEvent(msgspec.Struct, tag=True, omit_defaults=True, gc=False):
    pass


class VllmStored(VllmEvent, tag="BlockStored"):
    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[Any] | None = None


class VllmRemoved(VllmEvent, tag="BlockRemoved"):
    block_hashes: list[bytes | int]
    medium: str | None


class VllmCleared(VllmEvent, tag="AllBlocksCleared"):
    pass


class VllmBatch(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[VllmStored | VllmRemoved | VllmCleared]
    data_parallel_rank: int | None = None


VLLM = msgspec.msgpack.Decoder(VllmBatch)


def test_vllms_typed_decoder_reads_the_vllm_profile_and_not_the_map():
    batch = KVEventBatch(
        2.0, [gpu(-1), BlockRemoved([-5]), AllBlocksCleared("overflow", 3, 4, 5)], 1
    )  # fmt: skip
    read = VLLM.decode(make_profile("vllm").encode(batch))
    stored = VllmStored([2**64 - 1], None, [1, 2], 2, None, "GPU", None)
    assert read.events == [stored, VllmRemoved([2**64 - 5], None), VllmCleared()]
    assert read.data_parallel_rank == 1
    with pytest.raises(msgspec.ValidationError, match="lora_name"):
        VLLM.decode(make_profile("map").encode(batch))


# vLLM up to 0.23 and SGLang before #37482: the same, positional.
class OldStored(msgspec.Struct, array_like=True, tag="BlockStored", omit_defaults=True):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None = None


class OldRemoved(msgspec.Struct, array_like=True, tag="BlockRemoved", omit_defaults=True):
    block_hashes: list[int]
    medium: str | None = None


class OldCleared(msgspec.Struct, array_like=True, tag="AllBlocksCleared"):
    pass


class OldBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[OldStored | OldRemoved | OldCleared]
    attn_dp_rank: int | None = None


def test_the_old_positional_schema_reads_the_legacy_profile():
    batch = KVEventBatch(2.0, [gpu(-1), BlockRemoved([7]), AllBlocksCleared("truncated", 9)], 3)
    read = msgspec.msgpack.Decoder(OldBatch).decode(make_profile("legacy").encode(batch))
    assert read.events == [OldStored([-1], None, [1, 2], 2, None, "GPU"), OldRemoved([7]), OldCleared()]


def test_legacy_is_byte_equal_to_the_old_structs():
    ours = make_profile("legacy").encode(KVEventBatch(2.0, [gpu(-1), BlockRemoved([7])], 3))
    theirs = OldBatch(2.0, [OldStored([-1], None, [1, 2], 2, None, "GPU"), OldRemoved([7])], 3)
    assert ours == msgspec.msgpack.encode(theirs)


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(InvalidConfig, match="map, vllm, legacy, dynamo"):
        make_profile("protobuf")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ([1.0, [{"type": "BlocksLost"}], 0], "BlocksLost"),
        ([1.0, [{"type": "BlockStored", "block_hashes": [1], "block_size": 2}], 0], "token_ids"),
        ([1.0, [{"type": "BlockRemoved", "block_hashes": ["x"]}], 0], r"block_hashes\[0\]"),
        ([1.0, [{"type": "BlockStored", "block_hashes": [1], "token_ids": [[1, 2, 3]], "block_size": 1}], 0], "token"),
        ([1.0, [7], 0], "event 0"),
        ([1.0, 7, 0], r"batch\[1\]"),
        ({"ts": 1}, "array"),
        (["x", [], 0], "ts"),
        ([1.0, [], "x"], "rank"),
    ],
)
def test_an_error_says_where_and_what(raw, says):
    with pytest.raises(SchemaError, match=says):
        decode_batch(msgspec.msgpack.encode(raw))


def test_what_consumers_dislike_is_remarked():
    long = [1.0, [{"type": "BlockRemoved", "block_hashes": [b"\xff" * 32], "weather": 1}], 0, "more"]
    decoded = decode_batch(msgspec.msgpack.encode(long))
    assert {code for code, _ in decoded.remarks} == {"batch_length", "bytes_hash", "unknown_keys"}
    assert decoded.batch.events == [BlockRemoved([-1])]


def test_signed_and_unsigned_are_one_block():
    raw = [1.0, [{"type": "BlockRemoved", "block_hashes": [-5, 2**64 - 5]}], 0]
    assert decode_batch(msgspec.msgpack.encode(raw)).batch.events == [BlockRemoved([-5, -5])]
    assert to_signed(2**63) == -(2**63)
