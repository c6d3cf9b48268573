"""The oracle of KV-MODEL-2: what may be told of a transfer, and which bytes are there then."""

from __future__ import annotations

import numpy as np
import pytest

from kv_conformance.nodes.memory import Memory, Shape
from kv_conformance.suite.model_copies import Copies, Copy
from kv_conformance.suite.model_ledger import Ledger
from kv_conformance.suite.model_life import Broken
from kv_core import TransferState

SHAPE = Shape(kv=(1, 8, 16), gap=16)
PENDING, DONE, FAILED = TransferState.PENDING, TransferState.DONE, TransferState.FAILED


class Wire:
    """A book of copies with one transfer: 7 into items 0 and 1."""

    def __init__(self, excuse: str = "", *, hopeless: bool = False) -> None:
        self.memory = Memory(SHAPE)
        self.memory.poison()
        self.copies = Copies(Ledger(self.memory))
        before = [self.copies.target.content(("kv", item)) for item in (0, 1)]
        after = [np.full(16, 7, np.uint8)] * 2
        self.copy = Copy(1, 1, [4, 5], [0, 1], before, after, excuse, hopeless)
        self.copies.submitted(self.copy)
        self.copies.known[1] = self.copy

    def land(self, items: int = 2) -> None:
        self.memory.kv[0][:items] = 7

    def tell(self, state: TransferState, *, quiescent: bool, error: str | None = "why", refused: bool = False) -> None:
        self.copies.tell(1, state, error, quiescent=quiescent, refused=refused)
        self.copies.check()


def test_a_good_transfer() -> None:
    wire = Wire()
    wire.tell(PENDING, quiescent=False)
    wire.land(1)
    wire.tell(PENDING, quiescent=False)
    wire.land()
    wire.tell(DONE, quiescent=True)
    assert wire.copies.unquiet == []
    wire.copies.released([wire.copy])
    with pytest.raises(Broken, match="it was released"):
        wire.tell(DONE, quiescent=True)


def test_done_without_the_bytes() -> None:
    wire = Wire()
    wire.land(1)
    with pytest.raises(Broken, match="its bytes are not there"):
        wire.tell(DONE, quiescent=True)


def test_done_implies_quiescent() -> None:
    wire = Wire()
    wire.land()
    with pytest.raises(Broken, match="DONE implies quiescent"):
        wire.tell(DONE, quiescent=False)


def test_a_failure_without_a_reason() -> None:
    wire = Wire()
    with pytest.raises(Broken, match="nothing was done to it"):
        wire.tell(FAILED, quiescent=True)


def test_an_end_is_final() -> None:
    wire = Wire("it was cancelled")
    wire.tell(FAILED, quiescent=False)
    wire.land()
    with pytest.raises(Broken, match="an end is final"):
        wire.tell(DONE, quiescent=True)


def test_nothing_lands_after_quiescence() -> None:
    wire = Wire("it was cancelled")
    wire.tell(FAILED, quiescent=False)
    wire.land(1)
    wire.tell(FAILED, quiescent=True)
    wire.land()
    with pytest.raises(Broken, match="nothing may land there"):
        wire.copies.check()


def test_what_was_refused_has_written_nothing() -> None:
    wire = Wire("its peer had been removed")
    wire.land(1)
    with pytest.raises(Broken, match="refused before anything was posted"):
        wire.tell(FAILED, quiescent=True, refused=True)


def test_who_was_removed_gets_nothing() -> None:
    wire = Wire("its peer had been removed", hopeless=True)
    wire.land()
    with pytest.raises(Broken, match="it must be refused"):
        wire.tell(DONE, quiescent=True)


def test_a_failure_has_a_sentence() -> None:
    wire = Wire("it was cancelled")
    with pytest.raises(Broken, match="without a sentence"):
        wire.tell(FAILED, quiescent=True, error=None)


def test_a_process_that_has_ended_writes_nothing() -> None:
    wire = Wire("the target's process was killed")
    wire.land(1)
    assert wire.copies.died() == [wire.copy]
    wire.land()
    with pytest.raises(Broken, match="nothing may land there"):
        wire.copies.check()
