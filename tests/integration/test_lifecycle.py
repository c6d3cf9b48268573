"""Managers open, close, open again, fail to open, are closed in the middle of everything; and never hold up the engine."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from kv_core import (
    BootstrapServer,
    FailureCode,
    KVCoreError,
    KVPoll,
    ManagerClosed,
    RegistrationError,
    Role,
    TransferConfig,
    load_backend,
)
from tests.support.bad_servers import black_hole
from tests.support.memory import RankMemory, Shape
from tests.support.pair import BACKEND, QUICK, Pair, assert_failed
from tests.support.rank import RankProcess
from tests.support.usage import usage
from tests.support.waiting import wait_until

SHAPE = Shape(pages=32)
HELD = {"options": {"faults": [{"kind": "hold", "every": 1, "seconds": 60.0}]}}


def thread_names() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate())


@contextmanager
def nothing_left() -> Iterator[None]:
    """Every thread and descriptor that the body opens is gone after it."""
    threads, before = thread_names(), usage()
    yield
    wait_until(lambda: thread_names() == threads, lambda: f"threads left: {set(thread_names()) - set(threads)}")
    wait_until(lambda: usage()["fds"] <= before["fds"], lambda: f"descriptors: {before['fds']} -> {usage()['fds']}")


def test_open_close_open_fifty_times():
    """With traffic in each round; after the first few, nothing grows."""
    rounds, warm = 50, 15
    seen = []
    with nothing_left(), BootstrapServer(port=0) as server:
        for number in range(rounds):
            source, target = RankMemory(SHAPE), RankMemory(SHAPE)
            config = TransferConfig(bootstrap_addr=server.address)
            backend = load_backend(BACKEND)
            with (
                backend.create_manager(Role.PREFILL, source.args(), config) as prefill,
                backend.create_manager(Role.DECODE, target.args()) as decode,
            ):
                receiver = decode.create_receiver(server.address, number)
                receiver.init()
                receiver.send_metadata([1, 2, 3])
                source.write(7, number, [4, 5, 6])
                sender = prefill.create_sender(server.address, number)
                sender.init(3)
                sender.send([4, 5, 6])
                wait_until(lambda s=sender, r=receiver: s.poll().terminal and r.poll().terminal, "the room")  # type: ignore[misc]
                assert target.holds(7, number, [1, 2, 3]), receiver.failure()
            seen.append(usage())
    early, late = seen[warm:30], seen[-15:]
    assert max(now["threads"] for now in late) <= max(now["threads"] for now in early)
    assert max(now["fds"] for now in late) <= max(now["fds"] for now in early)
    assert late[-1]["rss"] - early[0]["rss"] < 8 << 20, [now["rss"] >> 10 for now in seen]


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_closing_with_live_rooms_fails_them_on_both_sides(side: str):
    with nothing_left(), Pair(SHAPE, config=QUICK | {"bootstrap_timeout_s": 60.0}, prefill=HELD) as pair:
        receivers = [pair.receiver(room) for room in range(4)]
        receivers[0].send_metadata([1, 2])
        receivers[1].send_metadata([3])
        senders = [pair.sender(room, pages) for room, pages in enumerate([[1, 2], [3], [4], [5]])]
        senders[0].send([1, 2])
        wait_until(lambda: senders[0].poll() is KVPoll.Transferring, "a transfer")
        wait_until(lambda: receivers[3].poll() is KVPoll.WaitingForInput, "the others")
        manager = pair.prefill if side == "prefill" else pair.decode
        manager.close()
        for handle in [*senders, *receivers]:
            failure = assert_failed(handle)
            bound = handle in senders[:2] + receivers[:2]
            # A room that the closed side had, and one that it alone had heard of.
            if bound or (handle in senders) == (side == "prefill"):
                assert failure.code is FailureCode.CLOSED, failure
                assert f"the {side} manager was closed" in failure.message or "closed its manager" in failure.message
            assert failure.retryable
        for handle in [*senders, *receivers]:
            wait_until(handle.is_release_safe, lambda h=handle: f"room {h.room}")  # type: ignore[misc]
        assert pair.target.blank(range(SHAPE.pages))


def test_close_is_idempotent_and_may_be_called_from_many_threads_at_once():
    with nothing_left():
        pair = Pair(SHAPE, config=QUICK)
        pair.good_room()
        errors: list[Exception] = []

        def close() -> None:
            try:
                pair.prefill.close()
                pair.decode.close()
            except Exception as error:  # noqa: BLE001 - to be shown by the test
                errors.append(error)

        threads = [threading.Thread(target=close) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not errors
        assert not any(thread.is_alive() for thread in threads)
        pair.close()
        pair.prefill.close()
        pair.server.close()


def test_a_closed_manager_says_so_and_its_handles_stay_readable():
    with nothing_left():
        with Pair(SHAPE, config=QUICK) as pair:
            sender, receiver = pair.sender(1, [1]), pair.receiver(2)
        for handle in (sender, receiver):
            assert handle.poll() is KVPoll.Failed
            assert assert_failed(handle).code is FailureCode.CLOSED
            handle.abort()
            handle.clear()
            assert handle.is_release_safe()
        sender.send([1])
        receiver.send_metadata([1])
        with pytest.raises(ManagerClosed, match="create a new one"):
            pair.prefill.create_sender(pair.addr, 3)
        with pytest.raises(ManagerClosed, match="create a new one"):
            pair.decode.create_receiver(pair.addr, 3)
        assert pair.prefill.snapshot()["live_rooms"] == 0
        assert not any(thread["alive"] for thread in pair.prefill.health().values())


@pytest.mark.parametrize("region", [1, 3, 5])
@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_registration_that_fails_half_way_leaves_nothing(region: int, role: Role):
    memory = RankMemory(SHAPE)
    faults: dict[str, Any] = {"options": {"faults": [{"kind": "fail_registration", "nth": region}]}}
    with nothing_left(), Pair(SHAPE, config=QUICK) as pair, pair.alongside():
        for _ in range(3):
            with pytest.raises(RegistrationError) as caught:
                load_backend(BACKEND).create_manager(role, memory.args(), TransferConfig(**faults))
            assert caught.value.region == region - 1
            assert caught.value.errno == errno.ENOMEM
            assert caught.value.quiescent
        with load_backend(BACKEND).create_manager(role, memory.args(), TransferConfig()) as manager:
            assert all(thread["alive"] for thread in manager.health().values())


def test_memory_that_is_not_there_is_refused():
    memory = RankMemory(SHAPE)
    args = memory.args()
    wrong = replace(args.kv, buffers=(replace(args.kv.buffers[0], address=8192), *args.kv.buffers[1:]))
    with nothing_left(), pytest.raises(RegistrationError, match="not\\s+mapped") as caught:
        load_backend(BACKEND).create_manager(Role.DECODE, replace(args, kv=wrong), TransferConfig())
    assert caught.value.region == 0


def test_a_control_port_that_is_taken():
    memory = RankMemory(SHAPE)
    with nothing_left(), socket.create_server(("127.0.0.1", 0)) as taken:
        config = TransferConfig(control_port=taken.getsockname()[1])
        with pytest.raises(KVCoreError, match="control_port"):
            load_backend(BACKEND).create_manager(Role.DECODE, memory.args(), config)


def test_more_rooms_than_allowed_are_refused_and_the_others_go_on():
    with Pair(SHAPE, config=QUICK | {"max_rooms": 5}) as pair:
        senders = [pair.sender(room, [room]) for room in range(5)]
        extra = pair.prefill.create_sender(pair.addr, 5)
        failure = assert_failed(extra)
        assert failure.code is FailureCode.OVERLOADED
        assert "TransferConfig.max_rooms" in failure.message
        assert failure.retryable
        senders[0].clear()
        pair.good_room(5)
        for sender in senders:
            sender.clear()


def test_early_requests_beyond_the_bound_are_refused_by_name():
    with Pair(SHAPE, config=QUICK | {"max_inbox": 3}) as pair:
        receivers = [pair.receiver(room) for room in range(6)]
        for receiver in receivers:
            receiver.send_metadata([receiver.room])
        wait_until(lambda: sum(r.poll() is KVPoll.Failed for r in receivers) == 3, "three too many")
        for receiver in receivers:
            if receiver.poll() is KVPoll.Failed:
                failure = assert_failed(receiver)
                assert failure.code is FailureCode.OVERLOADED
                assert "TransferConfig.max_inbox" in failure.message
            receiver.clear()
        pair.good_room(50)


def test_nothing_on_the_engines_thread_waits():
    """The bootstrap server is a black hole and the peer is frozen: thousands of calls come back all the same."""
    memory = RankMemory(Shape(pages=4_096))
    with BootstrapServer(port=0) as server, RankProcess("decode") as peer, black_hole() as hole:
        config = TransferConfig(bootstrap_addr=server.address)
        peer.start(Shape(pages=4_096))
        with (
            load_backend(BACKEND).create_manager(Role.PREFILL, memory.args(), config) as prefill,
            load_backend(BACKEND).create_manager(Role.DECODE, RankMemory(SHAPE).args(), TransferConfig()) as decode,
        ):
            peer.call("open", orders=[{"room": 1, "addr": server.address, "pages": 4}])
            first = prefill.create_sender(server.address, 1)
            first.init(4)
            first.send([0, 1, 2, 3])
            wait_until(lambda: first.poll().terminal, "a first room")
            peer.call("open", orders=[{"room": room, "addr": server.address, "pages": 4} for room in range(100, 300)])
            wait_until(lambda: prefill.snapshot()["early_rooms"] == 200, "the peer's rooms")
            peer.freeze()
            done = threading.Event()

            def engine() -> None:
                handles: list[Any] = []
                for room in range(100, 300):
                    sender = prefill.create_sender(server.address, room)
                    sender.init(4)
                    sender.send([0, 1, 2, 3])
                    handles.append(sender)
                    receiver = decode.create_receiver(f"127.0.0.1:{hole}", room)
                    receiver.init()
                    receiver.send_metadata([1, 2])
                    handles.append(receiver)
                for _ in range(20):
                    for handle in handles:
                        handle.poll()
                        handle.failure()
                        handle.get_transfer_metric()
                        handle.is_release_safe()
                for handle in handles[::2]:
                    handle.abort()
                for handle in handles:
                    handle.clear()
                prefill.snapshot()
                prefill.health()
                done.set()

            thread = threading.Thread(target=engine, name="engine")
            thread.start()
            try:
                assert done.wait(60), "a call waits for a peer"
            finally:
                peer.thaw()
                thread.join(60)
