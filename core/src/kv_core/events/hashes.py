"""Names of blocks: signed and unsigned, and Dynamo's namespaces.

A router that knows no cache salt would take the same tokens under two salts for one block, because SGLang's hash covers
tokens only. SGLang 0.5.23 therefore offers ``"format": "dynamo"``: the hash of a block that has an extra key or a salt is
mixed with both (golden bytes in ``peers.md`` section 5.2; read in its source, the release has no test of it).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

NAMESPACE = b"sglang-kv-event-namespace-v1"
_SPAN = 1 << 64
_HALF = 1 << 63


def to_signed(value: int) -> int:
    """The 64 bits of `value` read as a signed number, as SGLang writes them."""
    value %= _SPAN
    return value - _SPAN if value >= _HALF else value


def to_unsigned(value: int) -> int:
    """The 64 bits of `value` read as an unsigned number, as vLLM writes them. -1 and 2**64 - 1 are one block."""
    return value % _SPAN


def from_digest(hex_digest: str) -> int:
    """A block's name from its chained SHA-256: the first 16 hex digits as a signed number (SGLang's rule)."""
    return to_signed(int(hex_digest[:16], 16))


def namespace_seed(extra_key: str | None, cache_salt: str | None) -> bytes | None:
    """What the hashes of a namespace are mixed with; None where there is nothing to keep apart.

    SHA-256 over the label and, for each of the two, ``00`` if it is None, else ``01``, its length in UTF-8 bytes
    (8 bytes, little-endian) and those bytes.
    """
    if extra_key is None and cache_salt is None:
        return None
    digest = hashlib.sha256(NAMESPACE)
    for part in (extra_key, cache_salt):
        if part is None:
            digest.update(b"\0")
        else:
            data = part.encode()
            digest.update(b"\1" + len(data).to_bytes(8, "little") + data)
    return digest.digest()


def namespaced(block_hash: int, seed: bytes | None) -> int:
    """The hash in its namespace: the first 8 bytes of SHA-256(seed, hash as 8 bytes big-endian), signed."""
    if seed is None:
        return to_signed(block_hash)
    mixed = hashlib.sha256(seed + to_signed(block_hash).to_bytes(8, "big", signed=True)).digest()
    return int.from_bytes(mixed[:8], "big", signed=True)


def namespaced_all(block_hashes: Sequence[int], extra_key: str | None, cache_salt: str | None) -> list[int]:
    """Several hashes of one namespace."""
    seed = namespace_seed(extra_key, cache_salt)
    return [namespaced(block_hash, seed) for block_hash in block_hashes]
