"""What stands where a bootstrap server should: each fails the rooms that need it, with a type and in time, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from itertools import chain
from typing import Any

import pytest

from kv_core import BootstrapServer, FailureCode, FailureStage, KVPoll, Role, Topology, TransferConfig, load_backend
from tests.support.bad_servers import black_hole, closed_port, http, slow_proxy, talker
from tests.support.memory import RankMemory, Shape
from tests.support.pair import BACKEND, QUICK, Pair, assert_failed, assert_success
from tests.support.waiting import wait_until

SHAPE = Shape(pages=32)
TIMEOUT_S = 1.0
CONFIG = QUICK | {"bootstrap_timeout_s": TIMEOUT_S}


@pytest.fixture(scope="module")
def shared() -> Iterator[Pair]:
    with Pair(SHAPE, config=CONFIG) as pair:
        yield pair


@pytest.fixture
def pair(shared: Pair) -> Iterator[Pair]:
    with shared.cleaning():
        yield shared


class BootstrapPort:
    """A real server at which nobody registers."""

    def __enter__(self) -> int:
        self.server = BootstrapServer(port=0)
        return self.server.port

    def __exit__(self, *_: object) -> None:
        self.server.close()


TROUBLES: list[tuple[str, Callable[[], AbstractContextManager[int]], set[FailureCode], str]] = [
    ("absent", closed_port, {FailureCode.TIMEOUT}, "refused, nothing listens there; start the prefill instance"),
    ("black-holed", black_hole, {FailureCode.TIMEOUT}, f"bootstrap_timeout_s={TIMEOUT_S:g}"),
    ("silent", lambda: talker(lambda _: None), {FailureCode.TIMEOUT}, f"bootstrap_timeout_s={TIMEOUT_S:g}"),
    ("hanging up", lambda: talker(lambda _: b""), {FailureCode.TIMEOUT}, "closed before an answer"),
    ("no HTTP", lambda: talker(lambda _: b"\xff\x00SSH-2.0-OpenSSH_9.6\r\n" * 9), {FailureCode.TIMEOUT}, "does not speak HTTP"),
    ("another web server", lambda: talker(http(200, b"<html>Welcome to nginx!</html>", "text/html")),
     {FailureCode.INCOMPATIBLE}, "no bootstrap server"),
    ("another JSON service", lambda: talker(http(200, b'{"status": "green"}')), {FailureCode.INCOMPATIBLE}, "no bootstrap server"),
    ("forbidden", lambda: talker(http(403, b"no")), {FailureCode.INCOMPATIBLE}, "status 403"),
    ("broken", lambda: talker(http(500, b'{"error": "oh"}')), {FailureCode.TIMEOUT}, "status 500"),
    ("without ranks", BootstrapPort, {FailureCode.TIMEOUT}, "no prefill rank is registered"),
]  # fmt: skip


@pytest.fixture(scope="module")
def asked(shared: Pair) -> Iterator[dict[str, list[Any]]]:
    """Three rooms at each of them, all at the same time: their deadlines run together."""
    with ExitStack() as stack:
        receivers: dict[str, list[Any]] = {}
        for name, listen, _, _ in TROUBLES:
            addr = f"127.0.0.1:{stack.enter_context(listen())}"
            receivers[name] = [shared.decode.create_receiver(addr, shared.number()) for _ in range(3)]
            for receiver in receivers[name]:
                receiver.init()
                receiver.send_metadata([1])
        shared.good_room()  # which is not held up by what stands in the way of the others
        yield receivers
        for receiver in chain.from_iterable(receivers.values()):
            receiver.clear()


@pytest.mark.parametrize("case", TROUBLES, ids=[case[0] for case in TROUBLES])
def test_decode_asks_something_that_is_no_bootstrap_server(asked: dict[str, list[Any]], case: Any):
    name, _, codes, says = case
    for receiver in asked[name]:
        failure = assert_failed(receiver)
        assert failure.code in codes
        assert failure.stage is FailureStage.BOOTSTRAP
        assert re.search(says, failure.message), failure.message
        assert failure.retryable is (failure.code is FailureCode.TIMEOUT)
        assert receiver.is_release_safe()


def test_a_slow_server_is_waited_for(pair: Pair):
    with slow_proxy(pair.server.port, 0.3) as port:
        receiver = pair.decode.create_receiver(f"127.0.0.1:{port}", 500)
        receiver.init()
        sender = pair.sender(500, [1, 2])
        receiver.send_metadata([1, 2])
        sender.send([1, 2])
        assert_success(sender, receiver)
        sender.clear()
        receiver.clear()


@pytest.mark.parametrize(
    "trouble", [closed_port, black_hole, lambda: talker(http(500, b"{}"))], ids=["absent", "black-holed", "broken"]
)
def test_prefill_cannot_register(trouble: Callable[[], AbstractContextManager[int]]):
    """Its rooms end in time; the manager opens and closes as ever."""
    memory = RankMemory(SHAPE)
    with trouble() as port:
        config = TransferConfig(**CONFIG | {"bootstrap_addr": f"127.0.0.1:{port}"})
        with load_backend(BACKEND).create_manager(Role.PREFILL, memory.args(), config) as manager:
            sender = manager.create_sender(f"127.0.0.1:{port}", 3)
            sender.init(1)
            sender.send([1])
            failure = assert_failed(sender)
            assert (failure.stage, failure.code) == (FailureStage.BOOTSTRAP, FailureCode.TIMEOUT)
            assert "no decode rank asked for the room" in failure.message
            sender.clear()


def test_the_server_is_named_by_the_first_room():
    """Without ``bootstrap_addr``, prefill registers where its first room says."""
    with Pair(SHAPE, config=CONFIG, prefill={"bootstrap_addr": None}) as pair:
        assert pair.server.snapshot()["registrations"] == 0
        pair.good_room()
        assert pair.server.snapshot()["registrations"] == 1


def test_the_server_is_restarted_on_its_port():
    """Rooms under way don't notice; new ones, and decode ranks that never heard of it, find it again."""
    with Pair(SHAPE, config=QUICK) as pair, pair.alongside():
        pair.server.close()
        pair.good_room()  # the session goes on
        with BootstrapServer(port=pair.server.port) as again:
            wait_until(lambda: again.snapshot()["ready"], "prefill's renewal")
            pair.good_room()
            memory = RankMemory(SHAPE)
            with load_backend(BACKEND).create_manager(Role.DECODE, memory.args(), TransferConfig(**QUICK)) as newcomer:
                receiver = newcomer.create_receiver(pair.addr, 900)
                receiver.init()
                sender = pair.sender(900, [4])
                receiver.send_metadata([4])
                sender.send([4])
                assert_success(sender, receiver)
                assert memory.holds(pair.seed, 900, [4])
                sender.clear()
                receiver.clear()


def test_a_room_that_waits_while_the_server_is_away_is_served_when_it_is_back():
    with closed_port() as port:
        pass  # free now, and nobody takes it in between: the kernel hands ephemeral ports out in turn
    addr, memory = f"127.0.0.1:{port}", RankMemory(SHAPE)
    with load_backend(BACKEND).create_manager(
        Role.DECODE, memory.args(), TransferConfig(**QUICK | {"bootstrap_timeout_s": 30.0})
    ) as decode:
        receiver = decode.create_receiver(addr, 1)
        receiver.init()
        receiver.send_metadata([2])
        with BootstrapServer(port=port):
            source = RankMemory(SHAPE)
            config = TransferConfig(**QUICK | {"bootstrap_addr": addr})
            with load_backend(BACKEND).create_manager(Role.PREFILL, source.args(), config) as prefill:
                source.write(1, 1, [3])
                sender = prefill.create_sender(addr, 1)
                sender.init(1)
                sender.send([3])
                assert_success(sender, receiver)
                assert memory.holds(1, 1, [2])


def test_a_server_that_is_full_of_another_topology():
    """The address is another instance's: this rank is refused there, and its rooms end in time on both sides."""
    with BootstrapServer(port=0) as server:
        config = TransferConfig(**CONFIG | {"bootstrap_addr": server.address})
        theirs, ours, other = RankMemory(SHAPE), RankMemory(SHAPE), RankMemory(SHAPE)
        args = theirs.args(topology=Topology(tp_rank=1, tp_size=2))
        backend = load_backend(BACKEND)
        with backend.create_manager(Role.PREFILL, args, config):
            wait_until(lambda: server.snapshot()["registrations"] == 1, "their registration")
            with (
                backend.create_manager(Role.PREFILL, ours.args(), config) as prefill,
                backend.create_manager(Role.DECODE, other.args(), TransferConfig(**CONFIG)) as decode,
            ):
                wait_until(lambda: server.snapshot()["refused"] >= 1, "our refusal")
                sender, receiver = prefill.create_sender(server.address, 1), decode.create_receiver(server.address, 1)
                sender.init(1)
                receiver.init()
                receiver.send_metadata([1])
                here, there = assert_failed(sender), assert_failed(receiver)
                assert here.code is FailureCode.TIMEOUT
                assert there.code is FailureCode.TIMEOUT
                assert "1 of 2 prefill ranks" in there.message
                assert "topology" in here.message or "refused" in here.message, here.message
                assert server.snapshot()["registrations"] == 1


def test_the_engine_is_told_nothing_twice(pair: Pair):
    """A room that failed while its server was asked stays as it failed when the answer comes."""
    with talker(http(200, json.dumps({"status": "ok"}).encode())) as port:
        receiver = pair.decode.create_receiver(f"127.0.0.1:{port}", pair.number())
        receiver.init()
        receiver.abort("the client hung up early")
        first = assert_failed(receiver)
        pair.good_room()
        assert receiver.failure() == first
        assert receiver.poll() is KVPoll.Failed
        receiver.clear()
