"""The contract's values: what they refuse, what they compute, and that they survive a spawned process."""

from __future__ import annotations

import dataclasses
import multiprocessing
from typing import Any

import pytest

from kv_core import (
    FAKE_BOOTSTRAP_HOST,
    BackendInfo,
    BackendLoadError,
    BackendNotFound,
    BootstrapError,
    Buffer,
    Capability,
    DigestMode,
    Failure,
    FailureCode,
    FailureStage,
    IncompatibleBackend,
    InvalidConfig,
    KVArgs,
    KVPoll,
    KVTransferError,
    KVTransferMetric,
    ManagerClosed,
    MessageError,
    NotPicklable,
    NotSupported,
    Pool,
    RegistrationError,
    Role,
    Side,
    Topology,
    TransferConfig,
    TransportError,
)

FAILURE = Failure(FailureStage.TRANSFER, FailureCode.TIMEOUT, "nothing came", Side.FABRIC, True, "here", "there")
KV = Pool.uniform("kv", [4096, 2**63 + 4096], 512, 8)
VALUES = [
    FAILURE,
    KVArgs(KV, Pool.uniform("aux", [2**20], 64, 4), (Pool.uniform("mamba", [2**21], 8, 2),), extra={"draft": "none"}),
    TransferConfig(bootstrap_addr="127.0.0.1:8998", options={"faults": ()}, digest=DigestMode.ALL),
    TransferConfig(require_transport=("RDMA", "cma")),
    BackendInfo("x", "kv-x", "1.0", (1, 0), frozenset({Capability.WRITE})),
    KVTransferMetric(0.25, 4096),
    KVTransferMetric(),
    Topology(1, 2, 0, 1, 0, 1, 3, 4),
]
ERRORS = [
    KVTransferError(17, FAILURE),
    InvalidConfig("no"),
    ManagerClosed("no"),
    NotPicklable("no"),
    NotSupported("fence", "fence"),
    TransportError("lost", quiescent=True),
    RegistrationError("no memory", region=3, errno=12),
    BootstrapError("503", status=503),
    MessageError("junk"),
    BackendNotFound("none", backend="x", distributions=("kv-x",), hint="install it"),
    BackendLoadError("broken", backend="x", hint="mend it"),
    IncompatibleBackend("old", backend="x"),
]


def echo(value: Any) -> Any:
    """Runs in a spawned process."""
    return value


@pytest.fixture(scope="module")
def spawned():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


def test_values_survive_a_spawned_process(spawned):
    assert spawned.map(echo, VALUES) == VALUES


def test_errors_survive_a_spawned_process_with_all_they_carry(spawned):
    for error, back in zip(ERRORS, spawned.map(echo, ERRORS), strict=True):
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert back.__dict__ == error.__dict__


def test_poll_has_the_values_that_engines_know():
    assert [(state.name, state.value) for state in KVPoll] == [
        ("Failed", 0), ("Bootstrapping", 1), ("WaitingForInput", 2), ("Transferring", 3), ("Success", 4),
    ]  # fmt: skip
    assert [state for state in KVPoll if state.terminal] == [KVPoll.Failed, KVPoll.Success]
    assert FAKE_BOOTSTRAP_HOST == "2.2.2.2"
    assert (Role.PREFILL.peer, Role.DECODE.peer) == (Role.DECODE, Role.PREFILL)


@pytest.mark.parametrize(
    "change",
    [
        {"bootstrap_timeout_s": 0}, {"waiting_timeout_s": -1}, {"lease_s": float("nan")}, {"probe_interval_s": 0},
        {"suspect_after": 0}, {"suspect_after": 5, "dead_after": 5}, {"control_port": 65_536}, {"control_port": -1},
        {"require_transport": ""}, {"require_transport": ()}, {"require_transport": ("rdma", " ")}, {"require_transport": (1,)},
        {"queue_shards": 0}, {"max_rooms": 0}, {"max_batch_descriptors": 0}, {"window_bytes": 0}, {"close_timeout_s": 0},
    ],
)  # fmt: skip
def test_a_setting_that_can_not_work_is_refused_by_name(change):
    with pytest.raises(InvalidConfig, match="|".join(change)):
        TransferConfig(**change)


def test_an_unknown_digest_mode_is_refused():
    assert TransferConfig(digest="sampled").digest is DigestMode.SAMPLED  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sometimes"):
        TransferConfig(digest="sometimes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Buffer(0, 1, 1), "64-bit address"),
        (lambda: Buffer(2**64, 1, 1), "64-bit address"),
        (lambda: Buffer(4096, 0, 1), "positive"),
        (lambda: Buffer(4096, 1, -1), "positive"),
        (lambda: Buffer(2**64 - 10, 11, 1), "past the end"),
        (lambda: Pool("", (Buffer(1, 1, 1),)), "name"),
        (lambda: Pool("kv", ()), "at least one buffer"),
        (lambda: Pool("kv", (Buffer(1, 1, 1), Buffer(1, 1, 2))), "same number of items"),
        (lambda: Pool.uniform("kv", [1, 2], 1, 1, layers=[0]), "2 addresses but 1 layers"),
        (lambda: Topology(tp_rank=2, tp_size=2), "tp_rank 2"),
        (lambda: Topology(dp_size=0), "dp_rank"),
        (lambda: KVArgs(Pool.uniform("pages", [4096], 1, 1)), "must be named 'kv'"),
        (lambda: KVArgs(KV, Pool.uniform("rows", [4096], 1, 1)), "auxiliary pool"),
        (lambda: KVArgs(KV, states=(Pool.uniform("kv", [4096], 1, 1),)), "must differ"),
        (lambda: KVArgs(KV, page_size=0), "page_size"),
    ],
)
def test_memory_that_can_not_be_is_refused_with_a_sentence(make, words):
    with pytest.raises(InvalidConfig, match=words):
        make()


def test_pools_count_their_items():
    args = VALUES[1]
    assert isinstance(args, KVArgs)
    assert (args.kv.num_items, args.kv.item_bytes) == (8, 1024)
    assert [pool.name for pool in args.pools()] == ["kv", "mamba", "aux"]
    assert args.pool("mamba") is args.states[0]
    assert args.pool("nothing") is None
    assert [buffer.layer for buffer in args.kv.buffers] == [0, 1]


def test_a_failure_says_everything_in_one_line_and_keeps_its_first_origin():
    assert str(FAILURE) == "transfer/timeout: nothing came [here]"
    assert FAILURE.with_origin("elsewhere") is FAILURE
    bare = dataclasses.replace(FAILURE, origin="")
    assert bare.with_origin("elsewhere").origin == "elsewhere"
    assert str(KVTransferError(5, bare)) == "room 5 failed: transfer/timeout: nothing came"


def test_an_unknown_capability_is_refused():
    with pytest.raises(ValueError, match="telepathy"):
        BackendInfo("x", "kv-x", "1", (1, 0), frozenset({"telepathy"}))  # type: ignore[arg-type]
