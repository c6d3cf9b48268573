"""Two sides that don't fit: refused before the first byte, with every differing field and both values, on both sides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from kv_core import FailureCode, FailureStage, KVCoreError, Role, Topology, TransferConfig, load_backend
from kv_core.protocol.messages import Codec, Hello, Refuse, Welcome
from tests.support.memory import RankMemory, Shape
from tests.support.other_backend import other_backend
from tests.support.pair import BACKEND, QUICK, Pair, assert_failed
from tests.support.stranger import Stranger
from tests.support.waiting import wait_until

SHAPE = Shape(pages=16, layers=2, page_bytes=128, aux_rows=4, states={"mamba": (4, 32)})

CASES: list[tuple[str, dict[str, Any], dict[str, Any], list[tuple[str, str, str]]]] = [
    # name, prefill's, decode's (args, and "shape"), [(field, prefill's value, decode's value)]
    ("page size", {"page_size": 16}, {"page_size": 32}, [("page_size", "16", "32")]),
    ("dtype", {"dtype": "bfloat16"}, {"dtype": "float8_e4m3"}, [("dtype", "bfloat16", "float8_e4m3")]),
    ("layout name", {"kv_layout": "NHD"}, {"kv_layout": "HND"}, [("kv_layout", "NHD", "HND")]),
    ("model", {"model": "llama"}, {"model": "qwen"}, [("model", "llama", "qwen")]),
    ("revision", {"revision": "abc"}, {"revision": "abd"}, [("revision", "abc", "abd")]),
    ("heads", {"num_kv_heads": 8}, {"num_kv_heads": 4}, [("num_kv_heads", "8", "4")]),
    ("head dimension", {"head_dim": 64}, {"head_dim": 128}, [("head_dim", "64", "128")]),
    ("extra", {"extra": {"draft": "eagle"}}, {"extra": {"draft": "none"}}, [("extra.draft", "eagle", "none")]),
    ("layers", {}, {"shape": replace(SHAPE, layers=3)}, [("layer", "", "")]),
    ("page bytes", {}, {"shape": replace(SHAPE, page_bytes=64)}, [("", "128", "64")]),
    ("width of a row", {}, {"shape": replace(SHAPE, aux_bytes=40)}, [("aux", "48", "40")]),
    ("state pools", {}, {"shape": replace(SHAPE, states={})}, [("state_pools", "mamba", "")]),
    ("width of a state", {}, {"shape": replace(SHAPE, states={"mamba": (4, 16)})}, [("mamba", "32", "16")]),
    (
        "everything at once",
        {"page_size": 16, "dtype": "a", "model": "m1", "revision": "r1", "extra": {"x": "1", "y": "2"}},
        {"page_size": 64, "dtype": "b", "model": "m2", "revision": "r2", "extra": {"x": "9", "y": "8"}},
        [("page_size", "16", "64"), ("dtype", "a", "b"), ("model", "m1", "m2"), ("revision", "r1", "r2"),
         ("extra.x", "1", "9"), ("extra.y", "2", "8")],
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_every_differing_field_is_named_on_both_sides(case):
    _, prefill, decode, expected = case
    decode = dict(decode)
    with Pair(
        SHAPE, decode_shape=decode.pop("shape", None), config=QUICK, prefill_args=prefill, decode_args=decode
    ) as pair:
        refused(pair, expected)


def refused(pair: Pair, expected: list[tuple[str, str, str]]) -> str:
    """A room fails on both sides with all of these differences; the sentence."""
    room = pair.number()
    sender, receiver = pair.sender(room, [1]), pair.receiver(room)
    receiver.send_metadata([1])
    sender.send([1])
    failures = [assert_failed(sender), assert_failed(receiver)]
    for failure in failures:
        assert (failure.stage, failure.code) == (FailureStage.HANDSHAKE, FailureCode.INCOMPATIBLE)
        assert not failure.retryable
        for field, prefill, decode in expected:
            part = next((p for p in failure.message.split(";") if field in p and prefill in p and decode in p), None)
            assert part is not None, f"{field} ({prefill}, {decode}) is missing in: {failure.message}"
    assert failures[0].message == failures[1].message
    assert pair.target.blank(range(pair.target.shape.pages)), "not one byte may move"
    for handle in (sender, receiver):
        assert handle.is_release_safe()
        handle.clear()
    return failures[0].message


def test_another_backend():
    with other_backend("other"), Pair(SHAPE, config=QUICK, backends=(BACKEND, "other")) as pair:
        text = refused(pair, [("backend", BACKEND, "other")])
        assert text.count("prefill ") == 1, f"one difference, not more: {text}"


def test_a_refused_room_does_not_disturb_others():
    """One prefill rank, two decode ranks, of which one does not fit."""
    with Pair(SHAPE, config=QUICK) as good, good.alongside():
        misfit = RankMemory(SHAPE)
        manager = load_backend(BACKEND).create_manager(Role.DECODE, misfit.args(dtype="int8"), TransferConfig(**QUICK))
        with manager:
            for _ in range(3):
                room = good.number()
                sender = good.sender(room, [5])
                receiver = manager.create_receiver(good.addr, room)
                receiver.init()
                assert assert_failed(receiver).code is FailureCode.INCOMPATIBLE
                assert assert_failed(sender).code is FailureCode.INCOMPATIBLE
                sender.clear()
                receiver.clear()


def test_unknown_fields_are_ignored():
    """So that versions can roll: only one side knows this field."""
    with Pair(SHAPE, config=QUICK, decode_args={"extra": {"only_here": "1"}}) as pair:
        pair.good_room()


def test_other_sizes_of_pools_fit():
    """The number of pages is each side's own affair."""
    with Pair(SHAPE, config=QUICK, decode_shape=replace(SHAPE, pages=64, aux_rows=9)) as pair:
        pair.good_room()


def test_another_protocol_version_is_refused_with_both_versions():
    with Pair(SHAPE, config=QUICK) as pair, Stranger() as stranger:
        hello = stranger.hello(pair.prefill, RankMemory(SHAPE).args(), rooms=[7])
        sender = pair.sender(7, [1])
        stranger.send(pair.prefill, msgspec.structs.replace(hello, version=99))
        refuse = stranger.receive(Refuse)
        assert "protocol_version (prefill '1', decode '99')" in refuse.failure.message
        assert refuse.failure.message in str(assert_failed(sender))
        stranger.send(pair.prefill, msgspec.structs.replace(hello, session=hello.session + 1))
        assert stranger.receive(Welcome).session == hello.session + 1
        sender.clear()
        pair.good_room()


def test_a_memory_layout_that_makes_no_sense_is_refused():
    with Pair(SHAPE, config=QUICK) as pair, Stranger() as stranger:
        hello = stranger.hello(pair.prefill, RankMemory(SHAPE).args(), rooms=[7])
        for number, layout in enumerate(
            [{}, {"pools": []}, {"pools": [{"name": "kv"}]}, {"pools": 7}, {"pools": [None]}]
        ):
            wrong = msgspec.structs.replace(hello.introduction, layout=layout)
            stranger.send(pair.prefill, msgspec.structs.replace(hello, session=10 + number, introduction=wrong))
            failure = stranger.receive(Refuse).failure.failure()
            assert failure.code is FailureCode.INVALID_REQUEST
            assert "layout" in failure.message
        pair.good_room()


def test_a_hello_comes_through_unchanged():
    """What the strangers of these tests say is what decode says."""
    with Pair(SHAPE, config=QUICK) as pair, Stranger() as stranger:
        codec = Codec(1 << 20)
        hello = stranger.hello(pair.prefill, RankMemory(SHAPE).args(), rooms=[1])
        assert codec.decode(codec.encode(hello)) == hello
        assert isinstance(hello, Hello)


@pytest.mark.parametrize(
    "sizes", [{"tp_rank": 0, "tp_size": 2}, {"pp_rank": 1, "pp_size": 2}, {"cp_rank": 0, "cp_size": 4}]
)
def test_another_topology_of_one_instance(sizes: dict[str, int]):
    """A decode rank of an instance of another shape: a typed end, on decode within its deadline."""
    with Pair(SHAPE, config=QUICK, decode_args={"topology": Topology(**sizes)}) as pair:
        receiver = pair.receiver(pair.number())
        failure = assert_failed(receiver)
        assert failure.code is FailureCode.INCOMPATIBLE
        assert failure.stage is FailureStage.HANDSHAKE
        receiver.clear()


def test_a_decode_rank_asks_for_a_data_parallel_rank_that_is_not_there():
    with Pair(SHAPE, config=QUICK) as pair, pair.alongside():
        receiver = pair.decode.create_receiver(pair.addr, pair.number())
        receiver.init(prefill_dp_rank=5)
        failure = assert_failed(receiver)
        assert failure.code is FailureCode.INCOMPATIBLE
        assert "dp" in failure.message
        assert "5" in failure.message
        receiver.clear()


def test_the_wrong_kind_of_handle_is_refused_with_what_to_call():
    with Pair(SHAPE, config=QUICK) as pair:
        with pytest.raises(KVCoreError, match=r"use create_receiver\(\)"):
            pair.decode.create_sender(pair.addr, 1)
        with pytest.raises(KVCoreError, match=r"use create_sender\(\)"):
            pair.prefill.create_receiver(pair.addr, 1)
        wait_until(lambda: pair.prefill.snapshot()["rooms"] == 0, "no room")
        pair.good_room(1)
