"""``manager.explain()``: what moves between this rank and those that it has met."""

from __future__ import annotations

import pytest

from kv_core import CommonKVManager
from kv_core.layout import Move
from tests.support.memory import Shape
from tests.support.pair import Pair

SHAPE = Shape(pages=16, layers=2, page_bytes=128, aux_rows=4, states={"mamba": (4, 32)})


def managers(pair: Pair) -> tuple[CommonKVManager, CommonKVManager]:
    """Prefill's and decode's."""
    assert isinstance(pair.prefill, CommonKVManager)
    assert isinstance(pair.decode, CommonKVManager)
    return pair.prefill, pair.decode


def test_both_sides_tell_the_same_of_each_other():
    with Pair(SHAPE) as pair:
        prefill, decode = managers(pair)
        assert prefill.explain() == ()
        pair.good_room()
        told = prefill.explain()
        assert told == decode.explain()
        assert all(isinstance(move, Move) for move in told)
        assert {move.pool for move in told} == {"kv", "mamba", "aux"}
        (kv,) = (move for move in told if move.pool == "kv")
        assert (kv.source, kv.destination) == ((0, 0, 0, 0), (0, 0, 0, 0))
        assert kv.bytes_per_page == sum(buffer.item_len for buffer in prefill.kv_args.kv.buffers)


def test_one_peer_is_chosen_by_its_address_or_its_id():
    with Pair(SHAPE) as pair:
        prefill, decode = managers(pair)
        pair.good_room()
        everything = prefill.explain()
        assert prefill.explain(decode.endpoint) == everything
        assert prefill.explain(decode.instance_id[:12]) == everything
        with pytest.raises(ValueError, match=f"no peer 'nobody' has shaken hands; there are .*{decode.instance_id}"):
            prefill.explain("nobody")
