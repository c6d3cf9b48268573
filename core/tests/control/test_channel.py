"""One or two channels in this process: life, endpoints, names, limits, waking, leaks."""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic

import pytest
import zmq

from core.tests.control.support import (
    LIMIT_S,
    MAX_BYTES,
    black_hole,
    dead_port,
    frames,
    lost,
    make_channel,
    opened,
    poll_until,
    refused,
)
from kv_core.contract.failures import InvalidConfig, KVCoreError
from kv_core.runtime.control import ControlChannel, Frame
from kv_core.runtime.control_outbound import IDLE_S
from kv_core.runtime.control_wake import WakeUp


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def port_of(channel: ControlChannel) -> int:
    return int(channel.endpoint.rpartition(":")[2])


# -- life ----------------------------------------------------------------------------------------------------------


def test_frames_arrive_in_order_as_they_were() -> None:
    sent = [os.urandom(size) for size in (1, 10, 1_000, 100_000, 0, 7)] + [b"%d" % n for n in range(2_000)]
    with opened() as one, opened() as other:
        waiting = deque(sent)
        got: list[bytes] = []
        end = monotonic() + LIMIT_S
        while len(got) < len(sent):
            assert monotonic() < end
            while waiting and one.send(other.endpoint, waiting[0]):
                waiting.popleft()
            got += frames(other.poll(0.05))
            assert one.poll(0) == []
        assert got == sent
        assert one.snapshot()["frames_out"] == other.snapshot()["frames_in"] == len(sent)


def test_what_was_sent_just_before_close_arrives() -> None:
    with opened() as other:
        one = make_channel()
        one.open()
        for n in range(500):
            assert one.send(other.endpoint, b"%d" % n)
        one.close()
        got = poll_until(other, lambda got: len(got) >= 500)
        assert frames(got) == [b"%d" % n for n in range(500)]


def test_the_constructor_does_nothing_and_close_may_come_at_any_time() -> None:
    channel = make_channel()
    with pytest.raises(KVCoreError, match="before open"):
        _ = channel.endpoint
    channel.close()
    channel.wake()
    assert channel.snapshot()["connections"] == 0
    endpoint = channel.open()
    assert endpoint == channel.endpoint
    with pytest.raises(KVCoreError, match="opened once"):
        channel.open()
    channel.close()
    channel.close()
    channel.wake()
    assert channel.poll(100.0) == []
    assert not channel.send(endpoint, b"x")
    channel.disconnect(endpoint)
    channel.sweep(0.0)
    assert channel.snapshot()["dropped"]["closed"] == 1


def test_a_port_that_is_taken_is_named() -> None:
    with opened() as one:
        other = make_channel(port=port_of(one))
        with pytest.raises(KVCoreError, match=rf"127.0.0.1:{port_of(one)}.*in use.*control_port"):
            other.open()
        assert not other.send(one.endpoint, b"x")


def test_the_port_is_free_again_after_close() -> None:
    with opened() as one:
        port = port_of(one)
    for _ in range(3):
        with opened(port=port) as again:
            assert port_of(again) == port


def test_a_wildcard_needs_an_advertised_host() -> None:
    channel = make_channel("0.0.0.0")
    with pytest.raises(InvalidConfig, match="advertised_host"):
        channel.open()
    channel = make_channel("0.0.0.0", advertised="localhost")
    try:
        assert channel.open() == f"tcp://localhost:{port_of(channel)}"
        with opened() as other:
            assert other.send(channel.endpoint, b"x")
            end = monotonic() + LIMIT_S
            while not (got := channel.poll(0.05)):
                other.poll(0.05)
                assert monotonic() < end
            assert got == [Frame(b"x")]
    finally:
        channel.close()


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")
@pytest.mark.parametrize("host", ["::1", "[::1]", "0:0:0:0:0:0:0:1"])
def test_ipv6(host: str) -> None:
    with opened(host) as one, opened() as other:
        assert one.endpoint == f"tcp://[::1]:{port_of(one)}"
        assert other.send(one.endpoint, b"over v6")
        assert one.send(other.endpoint, b"over v4")
        assert frames(poll_until(one, bool)) == [b"over v6"]
        assert frames(poll_until(other, bool)) == [b"over v4"]
        one.close()
        got = poll_until(other, lambda got: bool(refused(got)))
        assert lost(got) == refused(got) == [one.endpoint]


def test_two_hundred_channels_leave_nothing_behind() -> None:
    def open_and_close() -> None:
        with opened() as one, opened() as other:
            one.send(other.endpoint, b"x")
            one.send("tcp://localhost:1", b"x")
            poll_until(other, bool)
            one.poll(0)

    def left() -> tuple[int, int, int]:
        return (
            len(list(Path("/proc/self/fd").iterdir())),
            len(list(Path("/proc/self/task").iterdir())),
            threading.active_count(),
        )

    open_and_close()
    before = left()
    for _ in range(100):
        open_and_close()
    # A thread that has been joined is still in the process table for a moment; one of the first round's was, perhaps.
    pause, end = threading.Event(), monotonic() + LIMIT_S
    while any(now > then for now, then in zip(left(), before, strict=True)):
        assert monotonic() < end, f"{left()} instead of {before}"
        pause.wait(0.01)


def test_without_descriptors_a_channel_does_not_open_but_an_open_one_goes_on() -> None:
    with opened() as one, opened() as other, ExitStack() as hogs:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, hard))
        hogs.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with suppress(OSError):
            while True:
                with pytest.raises(KVCoreError, match="ulimit"):
                    make_channel().open()
                hogs.enter_context(socket.socket())
        assert one.send(other.endpoint, b"x")
        assert one.send("tcp://127.0.0.1:1", b"x")
        assert one.poll(0.1) == [], "nothing is known of anybody"
        hogs.close()
        got = poll_until(one, lambda got: bool(refused(got)))
        assert frames(poll_until(other, bool)) == [b"x"]
        assert (lost(got), refused(got)) == ([], ["tcp://127.0.0.1:1"])


# -- endpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint",
    [
        "", "tcp://", "127.0.0.1:1", "tcp://127.0.0.1", "tcp://127.0.0.1:0", "tcp://127.0.0.1:65536", "tcp://:5",
        "tcp://*:5", "tcp://0.0.0.0:5", "tcp://[::]:5", "tcp://::1:5", "tcp://[::1:5", "ipc:///tmp/x", "inproc://events",
        "tcp://127.0.0.1:5;tcp://127.0.0.2:5", "tcp://eth0;127.0.0.1:5", "tcp://a b:5", "tcp://127.0.0.1:5\0", "tcp://é:5",
        "tcp://127.0.0.1:-5", "tcp://127.0.0.1:5 ", "tcp://" + "a" * 400 + ":5", "tcp://@127.0.0.1:5", "\ud800",
    ],
)  # fmt: skip
def test_bad_endpoints_are_refused(endpoint: str) -> None:
    with opened() as channel:
        assert not channel.send(endpoint, b"x")
        channel.disconnect(endpoint)
        assert channel.poll(0) == []
        counts = channel.snapshot()
        assert (counts["connections"], counts["backlog"], counts["dropped"]["bad_endpoint"]) == (0, 0, 1)


def test_endpoints_that_mean_the_same_address_share_a_connection() -> None:
    with opened() as one, opened() as other:
        same = [other.endpoint, f"tcp://localhost:{port_of(other)}", f"tcp://127.1:{port_of(other)}"]
        for endpoint in same:
            assert one.send(endpoint, endpoint.encode())
        poll_until(one, lambda _: one.snapshot()["backlog"] == 0)
        got = poll_until(other, lambda got: len(got) == 3)
        assert sorted(frames(got)) == sorted(endpoint.encode() for endpoint in same)
        assert one.snapshot()["connections"] == 1
        one.disconnect(same[0])
        assert one.snapshot()["connections"] == 1
        other.close()
        got = poll_until(one, lambda got: len(refused(got)) == 2)
        assert sorted(lost(got)) == sorted(refused(got)) == sorted(same[1:])


def test_disconnect_and_connect_again_at_once_many_times() -> None:
    with opened() as one, opened() as other:
        for n in range(200):
            assert one.send(other.endpoint, b"%d" % n)
            one.disconnect(other.endpoint)
            one.disconnect(other.endpoint)
        assert one.send(other.endpoint, b"last")
        got = poll_until(other, lambda got: b"last" in frames(got))
        assert set(frames(got)) <= {b"%d" % n for n in range(200)} | {b"last"}
        assert one.snapshot()["connections"] == 1
        assert lost(one.poll(0)) == []


def test_idle_endpoints_are_swept() -> None:
    with opened() as one, opened() as other, black_hole() as hole:
        silent = f"tcp://127.0.0.1:{hole}"
        one.send(other.endpoint, b"x")
        one.send(silent, b"x")
        one.sweep(1_000.0)
        one.sweep(1_000.0 + IDLE_S - 1)
        assert one.snapshot()["connections"] == 2
        one.send(other.endpoint, b"y")
        one.sweep(1_000.0 + IDLE_S)
        assert one.snapshot()["connections"] == 1
        one.sweep(1_000.0 + 2 * IDLE_S)
        assert one.snapshot()["connections"] == 0
        assert one.send(other.endpoint, b"z"), "and may be used again"
        got = poll_until(other, lambda got: len(got) == 3)
        assert sorted(frames(got)) == [b"x", b"y", b"z"], "in any order: they went over two connections"


def test_a_name_server_that_hangs_delays_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    resolve = socket.getaddrinfo

    def slow(host: str, port: int, **settings: int) -> object:
        if host == "slow.example" and not settings["flags"] & socket.AI_NUMERICHOST:
            answer.wait(LIMIT_S)
            host = "127.0.0.1"
        return resolve(host, port, **settings)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with opened() as one, opened() as other:
        endpoint = f"tcp://slow.example:{port_of(other)}"
        sent = [one.send(endpoint, b"%d" % n) for n in range(100)]
        assert sent.count(True) == one.snapshot()["backlog"] == one.backlog > 0
        assert one.send(other.endpoint, b"at once")
        assert frames(poll_until(other, bool)) == [b"at once"]
        answer.set()
        poll_until(one, lambda _: one.backlog == 0)
        got = poll_until(other, lambda got: len(got) == sent.count(True))
        assert frames(got) == [b"%d" % n for n in range(sent.count(True))]
        assert one.snapshot()["resolving"] == 0


def test_an_unknown_name_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def unknown(host: str, port: int, **settings: int) -> object:
        if host == "unknown.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, port, **settings)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with opened() as channel:
        for n in (1, 2):
            assert channel.send("tcp://unknown.example:5", b"x")
            assert poll_until(channel, lambda _: channel.backlog == 0) == []
            assert channel.snapshot()["dropped"]["unresolved"] == n
        assert channel.send("tcp://unknown.example:5", b"x")
        channel.disconnect("tcp://unknown.example:5")
        poll_until(channel, lambda _: channel.snapshot()["resolving"] == 0)
        assert channel.backlog == 0


# -- limits --------------------------------------------------------------------------------------------------------


def test_frames_beyond_the_limit_are_not_sent() -> None:
    with opened() as one, opened() as other:
        assert one.send(other.endpoint, bytes(MAX_BYTES))
        assert not one.send(other.endpoint, bytes(MAX_BYTES + 1))
        assert [len(data) for data in frames(poll_until(other, bool))] == [MAX_BYTES]
        assert one.snapshot()["dropped"]["too_long"] == 1


def test_frames_beyond_the_limit_are_not_taken() -> None:
    unlimited = ControlChannel("127.0.0.1", 0, None, 4 * MAX_BYTES, logging.getLogger("control"))
    unlimited.open()
    try:
        with opened() as one, opened() as other:
            assert unlimited.send(one.endpoint, bytes(MAX_BYTES + 1))
            got = poll_until(unlimited, lambda got: bool(lost(got)))
            assert lost(got) == [one.endpoint]
            assert other.send(one.endpoint, b"good")
            assert frames(poll_until(one, bool)) == [b"good"]
    finally:
        unlimited.close()


def test_a_bounded_number_of_frames_for_each_poll() -> None:
    with opened() as one, opened() as other:
        for n in range(600):
            assert one.send(other.endpoint, b"%d" % n)
        got: list[bytes] = []
        sizes = []
        end = monotonic() + LIMIT_S
        while len(got) < 600:
            more = frames(other.poll(0.05))
            got += more
            sizes.append(len(more))
            assert monotonic() < end
        assert got == [b"%d" % n for n in range(600)]
        assert max(sizes) <= 256


def test_what_comes_back_on_our_own_connections_is_thrown_away() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    evil = context.socket(zmq.ROUTER)
    evil.linger = 0
    port = evil.bind_to_random_port("tcp://127.0.0.1")
    try:
        with opened() as channel, opened() as other:
            channel.send(f"tcp://127.0.0.1:{port}", b"hello")
            assert evil.poll(int(LIMIT_S * 1_000))
            identity, data = evil.recv_multipart()
            assert data == b"hello"
            for n in range(3_000):
                evil.send_multipart([identity, b"%d" % n, b"and more"])
            poll_until(channel, lambda _: channel.snapshot()["dropped"]["wrong_way"] >= 1_000)
            assert other.send(channel.endpoint, b"good")
            assert frames(poll_until(channel, lambda got: bool(frames(got)))) == [b"good"]
    finally:
        evil.close(0)
        context.term()


# -- waking --------------------------------------------------------------------------------------------------------


def test_wake_ends_a_wait() -> None:
    with opened() as channel:
        thread = threading.Thread(target=channel.poll, args=(10_000.0,))
        thread.start()
        while thread.is_alive():
            channel.wake()
            thread.join(0.05)
        channel.wake()
        assert channel.poll(10_000.0) == [], "a wake before the wait counts too"


def test_no_wake_is_lost() -> None:
    handed_over: deque[int] = deque()
    with opened() as channel:

        def hand_over() -> None:
            for n in range(3_000):
                handed_over.append(n)
                channel.wake()

        threads = [threading.Thread(target=hand_over) for _ in range(3)]
        for thread in threads:
            thread.start()
        taken = 0
        while taken < 9_000:
            started = monotonic()
            channel.poll(2 * LIMIT_S)
            assert monotonic() - started < LIMIT_S, f"slept over a wake after {taken}"
            while handed_over:
                handed_over.popleft()
                taken += 1
        for thread in threads:
            thread.join()


def test_at_most_one_wake_is_pending() -> None:
    wake = WakeUp()
    wake.signal()
    reader = socket.socket(fileno=os.dup(wake.open()))
    try:
        for _ in range(1_000):
            wake.signal()
        assert reader.recv(10_000, socket.MSG_PEEK) == b"\0"
        wake.clear()
        wake.clear()
        wake.signal()
        assert reader.recv(10_000) == b"\0"
    finally:
        reader.close()
        wake.close()
    wake.signal()


def test_wake_while_closing() -> None:
    for _ in range(20):
        channel = make_channel()
        channel.open()
        stop = threading.Event()

        def keep_waking(channel: ControlChannel = channel, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                channel.wake()
                channel.snapshot()

        thread = threading.Thread(target=keep_waking)
        thread.start()
        channel.poll(10.0)
        channel.close()
        stop.set()
        thread.join()
        assert channel.snapshot()["connections"] == 0


def test_refused_is_told_without_anything_else_happening() -> None:
    with opened() as channel, dead_port() as port:
        endpoint = f"tcp://127.0.0.1:{port}"
        channel.send(endpoint, b"x")
        # No timer helps: the probe's own descriptor ends the wait.
        got = channel.poll(LIMIT_S)
        while not refused(got):
            got += channel.poll(LIMIT_S)
        assert refused(got) == [endpoint]
