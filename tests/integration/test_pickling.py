"""Engines spawn processes: what they hand to those survives, and what belongs to one process says so."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
from typing import Any

import pytest

import kv_core
from kv_core import (
    BackendError,
    BackendInfo,
    BackendLoadError,
    BackendNotFound,
    BootstrapError,
    Capability,
    Failure,
    FailureCode,
    FailureStage,
    IncompatibleBackend,
    InvalidConfig,
    KVCoreError,
    KVTransferError,
    KVTransferMetric,
    ManagerClosed,
    MessageError,
    NotPicklable,
    NotSupported,
    RegistrationError,
    Side,
    TransferConfig,
    TransportError,
    load_backend,
)
from tests.support.echo import echo
from tests.support.memory import RankMemory, Shape
from tests.support.pair import BACKEND, Pair

FAILURE = Failure(FailureStage.TRANSFER, FailureCode.PEER_LOST, "the peer is gone", Side.DECODE, True, "here", "there")
ERRORS: list[KVCoreError] = [
    KVCoreError("plain"),
    KVTransferError(2**63 - 1, FAILURE),
    InvalidConfig("TransferConfig.lease_s is 0"),
    ManagerClosed("closed"),
    NotPicklable("no"),
    NotSupported("fence", "fence"),
    TransportError("lost", quiescent=True),
    RegistrationError("region 3", region=3, errno=12),
    BootstrapError("refused", status=409),
    MessageError("too long"),
    BackendError("broken", backend="x", distributions=["kv-x"], hint="reinstall"),
    BackendNotFound("none", backend="x"),
    BackendLoadError("import", backend="x", distributions=("kv-x", "kv-y"), hint="pip install x"),
    IncompatibleBackend("api", backend="x"),
]


def values() -> list[Any]:
    shape = Shape(aux_rows=3, states={"mamba": (4, 8)})
    return [
        RankMemory(shape).args(extra={"draft": "none"}),
        TransferConfig(lease_s=7.0, digest="all", options={"seed": 1}),  # type: ignore[arg-type]
        BackendInfo("x", "kv-x", "1", (1, 0), frozenset({Capability.WRITE, Capability.CUDA}), "text"),
        KVTransferMetric(0.5, 100, 0.1, latency_source="core"),
        KVTransferMetric(),
        FAILURE,
        load_backend(BACKEND).info,
    ]


def test_every_exception_of_the_package_is_in_this_test():
    public = {thing for thing in vars(kv_core).values() if inspect.isclass(thing) and issubclass(thing, KVCoreError)}
    assert {type(error) for error in ERRORS} == public


def test_values_and_exceptions_survive_spawn():
    things = [*values(), *ERRORS]
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=echo, args=(there, things))
    process.start()
    there.close()
    with here:
        back = []
        for _ in things:
            assert here.poll(60), "the spawned process says nothing"
            back.append(here.recv())
    process.join(60)
    assert process.exitcode == 0
    for thing, (text, copied) in zip(things, back, strict=True):
        assert sorted(text) == sorted(repr(thing)), "what the other process saw; a set may have another order there"
        if isinstance(thing, Exception):
            assert (type(copied), str(copied), copied.args, vars(copied)) == (
                type(thing),
                str(thing),
                thing.args,
                vars(thing),
            )
        else:
            assert copied == thing
    process.close()


def test_managers_and_handles_refuse_with_what_to_do_instead():
    with Pair() as pair:
        sender, receiver = pair.sender(1, [1]), pair.receiver(1)
        warm_up = pair.prefill.create_sender(f"{kv_core.FAKE_BOOTSTRAP_HOST}:1", 1)
        for thing in (pair.prefill, pair.decode, sender, receiver, warm_up):
            with pytest.raises(NotPicklable, match=r"create the manager in the process that uses it") as caught:
                copy.copy(thing)
            assert type(thing).__name__ in str(caught.value)
        with pytest.raises(NotPicklable, match="Create it in the process that serves"):
            copy.copy(pair.server)
        sender.clear()
        receiver.clear()
        pair.good_room()


def test_a_handle_is_refused_on_the_way_into_a_process():
    with Pair() as pair:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        with here, there:
            process = context.Process(target=echo, args=(there, [pair.prefill]))
            with pytest.raises(NotPicklable, match="CommonKVManager can't be pickled"):
                process.start()
