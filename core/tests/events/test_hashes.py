"""Dynamo's namespaced hashes, against a second reading of SGLang's rule and fixed values."""

from __future__ import annotations

import hashlib
import struct

import pytest

from kv_core.events import BlockRemoved, BlockStored, from_digest, in_namespace, namespaced_all


def by_the_book(block_hash: int, extra_key: str | None, cache_salt: str | None) -> int:
    """peers.md section 5.2, word by word."""
    data = b"sglang-kv-event-namespace-v1"
    for value in (extra_key, cache_salt):
        data += b"\x00" if value is None else b"\x01" + struct.pack("<Q", len(value.encode())) + value.encode()
    seed = hashlib.sha256(data).digest()
    return struct.unpack(">q", hashlib.sha256(seed + struct.pack(">q", block_hash)).digest()[:8])[0]


@pytest.mark.parametrize("block", [0, 1, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize(("extra_key", "salt"), [("a", None), (None, "s"), ("", None), ("lora-ü", "tenant"), ("", "")])
def test_the_rule(block, extra_key, salt):
    assert namespaced_all([block], extra_key, salt) == [by_the_book(block, extra_key, salt)]


def test_fixed_values():
    assert namespaced_all([1], None, "tenant-a") == [GOLDEN_SALT]
    assert namespaced_all([1], "lora", None) == [GOLDEN_KEY]


GOLDEN_SALT = -948696713008435331
GOLDEN_KEY = 5334526931527487113


def test_without_key_and_salt_nothing_changes():
    assert namespaced_all([5, -5], None, None) == [5, -5]


def test_an_empty_key_is_a_namespace_of_its_own():
    assert len({*namespaced_all([5], None, ""), *namespaced_all([5], "", None), *namespaced_all([5], "", ""), 5}) == 4


def test_events_move_as_a_whole():
    stored = BlockStored([1, 2], 7, [1, 2, 3, 4], 2, None)
    moved = in_namespace(stored, extra_key="k", cache_salt="s", lora_name="l")
    gone = in_namespace(BlockRemoved([1, 2, 7], "GPU"), extra_key="k", cache_salt="s")
    assert isinstance(moved, BlockStored)
    assert [*moved.block_hashes, moved.parent_block_hash] == list(gone.block_hashes)
    assert (moved.cache_salt, moved.lora_name, list(moved.token_ids)) == ("s", "l", [1, 2, 3, 4])


def test_a_digest_gives_its_first_64_bits_signed():
    assert from_digest("ff" * 32) == -1
    assert from_digest("0000000000000001" + "ab" * 24) == 1
