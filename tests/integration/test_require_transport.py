"""``TransferConfig(require_transport=...)``: the fall-back to another fabric fails at the start, or before the first byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from kv_core import FailureCode, FailureStage, InvalidConfig, Role, TransferConfig, load_backend
from kv_core.contract.observers import Observers
from kv_core.contract.transport import PeerKey
from kv_core.runtime import create_manager
from tests.support import pair as pairs
from tests.support.memory import RankMemory, Shape
from tests.support.pair import BACKEND, QUICK, Pair, assert_failed
from tests.support.waiting import wait_until

SHAPE = Shape(pages=16, layers=2, page_bytes=128)
LATE = "late"


class _Late:
    """The embedded backend, but for this: what it uses is known when it has met the peer."""

    def __init__(self) -> None:
        record = load_backend(BACKEND).record

        class Transport(record.transport):  # type: ignore[name-defined, misc]
            def fabrics(self) -> tuple[str, ...]:
                return ()

            def describe(self, peer: PeerKey) -> str:
                return "ucx tcp"

        self.record = replace(record, transport=Transport)

    def create_manager(self, role, args, config, *, observers=()):
        return create_manager(self.record, role, args, config, Observers())


@pytest.fixture
def late() -> Iterator[None]:
    pairs.OTHERS[LATE] = _Late()
    yield
    del pairs.OTHERS[LATE]


def test_a_backend_that_knows_it_can_not_is_refused_at_the_start():
    memory = RankMemory(SHAPE)
    for role in Role:
        with pytest.raises(InvalidConfig, match=r"require_transport asks for 'rdma', and .* can use here is 'tcp'"):
            load_backend(BACKEND).create_manager(role, memory.args(), TransferConfig(require_transport="rdma"))
    with Pair(SHAPE, config=QUICK | {"require_transport": ("RDMA", "Tcp")}) as pair:
        pair.good_room()


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_a_peer_over_another_fabric_is_refused_before_a_byte_moves(late, side):
    sides: dict[str, Any] = {side: {"require_transport": "rdma"}}
    with Pair(SHAPE, config=QUICK, backends=(LATE, LATE), **sides) as pair:
        for _ in range(2):  # it stays so
            room = pair.number()
            sender, receiver = pair.sender(room, [1]), pair.receiver(room)
            receiver.send_metadata([2])
            sender.send([1])
            for handle in (sender, receiver):
                failure = assert_failed(handle)
                assert (failure.stage, failure.code) == (FailureStage.HANDSHAKE, FailureCode.INCOMPATIBLE)
                assert not failure.retryable
                assert "TransferConfig.require_transport asks for 'rdma'" in failure.message
                assert "'ucx tcp'" in failure.message
                wait_until(handle.is_release_safe, "nothing was written, and both sides know")
                handle.clear()
        assert pair.target.blank(range(SHAPE.pages)), "not one byte may move"
        pair.at_rest()


def test_a_peer_over_the_right_fabric_is_served(late):
    with Pair(SHAPE, config=QUICK | {"require_transport": "tcp"}, backends=(LATE, LATE)) as pair:
        pair.good_room()
