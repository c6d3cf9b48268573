"""What an engine may say of its memory besides what the case says: by name, for pairs that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kv_core import KVArgs, Pool


def _opaque(pool: Pool) -> Pool:
    return replace(pool, buffers=tuple(replace(buffer, item=None) for buffer in pool.buffers))


def opaque_kv(args: KVArgs) -> KVArgs:
    """KV pages of which nobody knows what they are made of."""
    return replace(args, kv=_opaque(args.kv))


def opaque_state(args: KVArgs) -> KVArgs:
    """The same of every component of state."""
    return replace(args, states=tuple(_opaque(pool) for pool in args.states))


TWISTS: dict[str, Callable[[KVArgs], KVArgs]] = {
    "": lambda args: args,
    "opaque KV": opaque_kv,
    "opaque state": opaque_state,
    "another model": lambda args: replace(args, model="another model"),
    "another dtype": lambda args: replace(args, dtype="float8_e4m3fn"),
    "another drafting model": lambda args: replace(args, extra={"speculative": "another"}),
}
