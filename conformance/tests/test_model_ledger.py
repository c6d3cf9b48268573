"""The ledger of a memory: what may be where."""

from __future__ import annotations

import numpy as np

from kv_conformance.nodes.memory import POISON, Memory, Shape
from kv_conformance.suite.model_ledger import Ledger

SHAPE = Shape(kv=(2, 4, 8), aux=(1, 2, 4), gap=16)


def ledger() -> Ledger:
    memory = Memory(SHAPE)
    memory.poison()
    return Ledger(memory)


def filled(book: Ledger, value: int, pool: str = "kv") -> np.ndarray:
    return np.full(book.nbytes(pool), value, np.uint8)


def test_a_memory_that_nobody_touches_is_right() -> None:
    book = ledger()
    assert (book.nbytes("kv"), book.nbytes("aux")) == (16, 4)
    assert book.wrong() == ""


def test_a_closed_item_may_not_be_written() -> None:
    book = ledger()
    book.memory.kv[1][2, 3] = 7
    assert "item 2 of pool 'kv' was written" in book.wrong()
    assert "byte 11" in book.wrong()


def test_a_gap_belongs_to_nobody() -> None:
    book = ledger()
    book.memory.whole[3] = 7
    assert "a gap" in book.wrong()


def test_an_open_item_may_hold_what_was_there_and_what_is_allowed_byte_by_byte() -> None:
    book = ledger()
    book.open([("kv", 1)])
    book.memory.kv[0][1] = 5
    assert "neither what may land there" in book.wrong()
    book.allow(("kv", 1), filled(book, 5))
    assert book.wrong() == ""
    book.allow(("kv", 1), filled(book, 6))
    book.memory.kv[0][1, 4:] = 6
    assert book.wrong() == ""


def test_what_is_there_at_the_close_stays() -> None:
    book = ledger()
    book.open([("kv", 1)])
    book.allow(("kv", 1), filled(book, 5))
    book.memory.kv[0][1] = 5
    assert book.close([("kv", 1)]) == ""
    assert book.wrong() == ""
    book.memory.kv[1][1] = 5
    assert "nothing may land there" in book.wrong()


def test_what_may_not_be_there_is_said_at_the_close() -> None:
    book = ledger()
    book.open([("aux", 1)])
    book.memory.pools["aux"][0][1] = 9
    assert "item 1 of pool 'aux'" in book.close([("aux", 1)])


def test_what_is_not_open_is_not_allowed_anything() -> None:
    book = ledger()
    book.allow(("kv", 0), filled(book, 5))
    book.memory.kv[0][0] = 5
    assert book.wrong()


def test_what_must_be_there() -> None:
    book = ledger()
    assert "poison" in book.lacks({("kv", 3): filled(book, 5)})
    book.write(("kv", 3), filled(book, 5))
    assert book.lacks({("kv", 3): filled(book, 5)}) == ""
    assert book.wrong() == ""
    book.poison(("kv", 3))
    assert (book.memory.kv[1][3] == POISON).all()
    assert book.wrong() == ""
