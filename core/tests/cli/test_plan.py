"""``kv-core plan``: what would move, as a table and as JSON, and why nothing can."""

from __future__ import annotations

import pytest

from core.tests.cli.support import kv_core
from kv_core.cli.plan_shapes import Shape, make_plan, parse_sizes


def test_the_table_names_ranks_heads_and_costs() -> None:
    ran = kv_core("plan", "--prefill", "tp=4,pp=2", "--decode", "tp=2", "--decode-page-size", "64")
    assert ran.status == 0, ran
    assert "tp3 pp1" in ran.out
    assert "16..31" in ran.out
    assert "6..7 of 8" in ran.out
    assert "262,144" in ran.out
    assert "needs the answers of 4 prefill ranks" in ran.out


def test_json_has_every_row_and_every_rank() -> None:
    ran = kv_core("plan", "--prefill", "tp=6", "--decode", "tp=4", "--mla", "--layers", "4", "--json")
    assert ran.status == 0, ran
    assert ran.document["refused"] is None
    kv = [move for move in ran.document["moves"] if move["pool"] == "kv"]
    assert [move["source"][0] for move in kv] == [0, 1, 3, 4]
    assert {(move["bytes_per_page"], move["descriptors_per_page"]) for move in kv} == {(4 * 16 * 256, 4)}
    ranks = ran.document["decode_ranks"]
    assert [rank["sources"] for rank in ranks] == [[[tp, 0, 0, 0]] for tp in (0, 1, 3, 4)]
    assert [one for rank in ranks for one in rank["dummies"]] == [[2, 0, 0, 0], [5, 0, 0, 0]]


def test_a_refusal_names_the_rule_and_both_values() -> None:
    ran = kv_core(
        "plan", "--prefill", "tp=3", "--decode", "tp=2", "--page-size", "6", "--decode-page-size", "4", "--json"
    )
    assert ran.status == 1, ran
    refused = ran.document["refused"]
    assert "must be shared evenly" in refused["rule"]
    assert "one page size must divide the other" in refused["rule"]
    assert refused["differences"] == [
        {"field": "kv.total", "prefill": "8 units by 3 ranks", "decode": "8 units by 2 ranks"},
        {"field": "page_size", "prefill": "6", "decode": "4"},
    ]


def test_wrong_arguments_are_told_off() -> None:
    ran = kv_core("plan", "--prefill", "tp=2,xp=3", "--decode", "tp=2")
    assert ran.status == 2, ran
    assert "xp=3" in ran.err


@pytest.mark.parametrize("text", ["tp", "tp=0", "tp=-1", "tp=1.5", "2", "tp=33,pp=32"])
def test_sizes_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match="tp="):
        parse_sizes(text)


def test_sizes_and_shapes() -> None:
    assert parse_sizes("") == (1, 1, 1, 1)
    assert parse_sizes("dp=4, tp=2") == (2, 1, 1, 4)
    with pytest.raises(ValueError, match="2 layers can't be cut into 3 pipeline stages"):
        make_plan((1, 3, 1, 1), (1, 1, 1, 1), Shape(layers=2))
    made = make_plan((4, 2, 2, 1), (2, 1, 3, 1), Shape(layers=4, decode_layout="HND"))
    # Whatever the way, all of the model's bytes arrive: each page of a decode rank comes once.
    pages = {move.pages for move in made.moves if move.pool == "kv"}
    assert pages == {"1 of 6"}
    each = 4 * 2 * 16 * 256 * 8 // 2  # layers, keys and values, tokens, bytes and half of the heads
    for rank in made.mappings:
        moves = [move for move in made.moves if move.destination == rank and move.pool == "kv"]
        assert sum(move.bytes_per_page for move in moves) == 2 * each  # from two context-parallel ranks, page by page
