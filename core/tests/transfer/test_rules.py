"""What a manager says of a peer that it can't serve: every field that differs, and the rule that is broken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kv_core import Buffer, ItemLayout, KVArgs, Pool, Role, Topology
from kv_core.protocol.handshake import fields_of, refusal
from kv_core.runtime.rules import PAGED_STATE, WHOLE, Rules


def rank(tp_size: int = 1, *, heads: int = 4, page: int = 2, layers: range = range(2), window: int = 0, opaque: bool = False, **place: Any) -> KVArgs:  # fmt: skip
    """A rank's memory. ``window``: tokens of a page of another pool; 0: there is none."""
    item = ItemLayout.page(page, heads, 8, tp_size=tp_size)
    kv = Pool.uniform("kv", [4096 + 4096 * layer for layer in layers], item.nbytes, 4, layers=layers, item=None if opaque else item)  # fmt: skip
    pages = ItemLayout.page(window or 1, 1, 8, tp_size=tp_size)
    states = (Pool("window", (Buffer(1 << 20, pages.nbytes, 4, 0, item=pages),)),) if window else ()
    return KVArgs(kv=kv, states=states, page_size=page, topology=Topology(tp_size=tp_size, **place))


def told(prefill: KVArgs, decode: KVArgs) -> str:
    """The sentence that prefill's rank refuses decode's with; empty if it takes it."""
    rules = Rules(prefill, Role.PREFILL)
    mine, theirs = (fields_of(args, "any", "1", "1") for args in (prefill, decode))
    found = rules.differences(rules.read(Rules(decode, Role.DECODE).layout.to_wire(), theirs), mine, theirs)
    return refusal(found, Role.PREFILL, "p", "d").message if found else ""


@pytest.mark.parametrize(
    ("prefill", "decode", "field", "rule"),
    [
        (rank(heads=3), rank(2), "kv.total (prefill '3 units by 1 ranks', decode '3 units by 2 ranks')", "the units of a part must be shared evenly"),
        (rank(page=4), rank(page=6), "kv.tokens (prefill '4', decode '6')", "one page size must divide the other"),
        (rank(2, opaque=True), rank(opaque=True), "tp_size (prefill '2', decode '1')", "must be equal on both sides unless both describe their items"),
        (rank(pp_size=2), rank(pp_size=2, layers=range(1)), "kv.layer (prefill '0..1', decode '0')", "as many pipeline stages must have the same layers"),
        (rank(window=2), rank(page=4, window=4), "window.tokens (prefill '2 tokens, cp 0 of 1', decode '4 tokens, cp 0 of 1')", PAGED_STATE),
        (rank(window=2), rank(window=2, cp_size=2), "window.tokens (prefill '2 tokens, cp 0 of 1', decode '2 tokens, cp 0 of 2')", PAGED_STATE),
    ],
)  # fmt: skip
def test_a_refusal_names_the_rule(prefill: KVArgs, decode: KVArgs, field: str, rule: str):
    text = told(prefill, decode)
    assert field in text
    _, found, rules = text.partition(". The rule")
    assert found
    assert rule in rules
    assert rules.count(rule) == 1


def test_what_must_be_equal_as_such_needs_no_rule():
    text = told(rank(), replace(rank(2), model="another"))
    assert "model (prefill '', decode 'another')" in text
    assert "The rule" not in text
    assert told(rank(), rank(2)) == ""


def test_layers_that_nobody_has():
    rules = Rules(rank(layers=range(3)), Role.DECODE)
    part = rank(layers=range(2), pp_size=2)
    source = rules.read(Rules(part, Role.PREFILL).layout.to_wire(), fields_of(part, "any", "1", "1"))
    (missing,) = rules.missing([source])
    assert (missing.field, missing.local, missing.remote, missing.rule) == ("kv.layer", "0..2", "0..1", WHOLE)
