"""Peers that die, stop, come back, or are not there at all; each in a process of its own."""

from __future__ import annotations

import re
import socket
import threading
from time import monotonic

import pytest

from core.tests.control.support import (
    LIMIT_S,
    Peer,
    ask,
    black_hole,
    dead_port,
    frames,
    lost,
    opened,
    poll_until,
    refused,
)
from kv_core.runtime import control_outbound
from kv_core.runtime.control_address import Address, numeric_address
from kv_core.runtime.control_outbound import MAX_FAILED_HANDSHAKES, Connection, Outbound
from kv_core.runtime.control_probe import PROBE_TIMEOUT_S, RefusalProbes
from kv_core.runtime.control_types import Incoming


def test_a_killed_peer_is_lost_and_then_refuses() -> None:
    with opened() as channel, Peer() as peer:
        ask(channel, peer, "hello")
        peer.end()
        got = poll_until(channel, lambda got: bool(refused(got)))
        assert lost(got) == refused(got) == [peer.endpoint]
        assert lost([got[0]]) == [peer.endpoint], "first lost, then refused"
        assert channel.snapshot()["connections"] == 0


def test_a_stopped_peer_is_neither_lost_nor_refused() -> None:
    with opened() as channel, Peer() as stopped, Peer() as sentinel:
        ask(channel, stopped, "hello")
        ask(channel, sentinel, "hello")
        stopped.stop()
        assert channel.send(stopped.endpoint, f"{channel.endpoint}|while stopped".encode())
        sentinel.end()
        got = poll_until(channel, lambda got: bool(refused(got)))
        assert stopped.endpoint not in lost(got) + refused(got)
        stopped.go_on()
        answer = f"{stopped.process.pid}:while stopped".encode()
        poll_until(channel, lambda got: answer in frames(got))


def test_a_connection_to_a_stopped_peer_that_is_then_killed_was_never_established() -> None:
    with opened() as channel, Peer() as stopped, Peer() as sentinel:
        stopped.stop()
        channel.send(stopped.endpoint, b"x")
        ask(channel, sentinel, "hello")
        stopped.end()
        got = poll_until(channel, lambda got: bool(refused(got)))
        assert (lost(got), refused(got)) == ([], [stopped.endpoint])


def test_a_peer_restarted_on_the_same_port_gets_the_frames() -> None:
    with opened() as channel, Peer() as first:
        ask(channel, first, "one")
        first.end()
        with Peer(port=first.port) as second:
            assert second.endpoint == first.endpoint
            got = ask(channel, second, "two")
            assert first.endpoint in lost(got)
            assert f"{second.process.pid}:two".encode() in frames(got)


def test_many_restarts_on_the_same_port() -> None:
    with opened() as channel:
        port = 0
        for turn in range(5):
            with Peer(port=port) as peer:
                port = peer.port
                ask(channel, peer, f"turn {turn}")
        assert channel.snapshot()["connections"] <= 1


def test_an_endpoint_where_nobody_listens_is_refused_once_for_each_attempt() -> None:
    with opened() as channel, dead_port() as port:
        endpoint = f"tcp://127.0.0.1:{port}"
        for _ in range(3):
            assert channel.send(endpoint, b"x")
            got = poll_until(channel, lambda got: bool(refused(got)))
            assert (lost(got), refused(got)) == ([], [endpoint])
        assert channel.snapshot()["connections"] == 0


def test_a_black_hole_is_silent() -> None:
    with opened() as channel, black_hole() as hole, dead_port() as port, Peer() as peer:
        silent, dead = f"tcp://127.0.0.1:{hole}", f"tcp://127.0.0.1:{port}"
        assert channel.send(silent, b"x")
        channel.send(dead, b"x")
        got = poll_until(channel, lambda got: bool(refused(got))) + ask(channel, peer, "hello")
        assert silent not in lost(got) + refused(got)
        assert channel.snapshot()["connections"] == 2


def test_attempts_that_run_out_of_time_are_no_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_outbound, "CONNECT_TIMEOUT_MS", 50)
    attempts: list[str] = []
    on_attempt = Outbound._on_attempt

    def count(self: Outbound, connection: Connection, value: int, now: float) -> list[Incoming]:
        attempts.append(connection.address.uri)
        return on_attempt(self, connection, value, now)

    monkeypatch.setattr(Outbound, "_on_attempt", count)
    with opened() as channel, black_hole() as hole:
        endpoint = f"tcp://127.0.0.1:{hole}"
        channel.send(endpoint, b"x")
        got = poll_until(channel, lambda _: len(attempts) > 3)
        assert got == []
        assert set(attempts) == {endpoint}


def test_a_probe_tells_refusal_from_silence() -> None:
    probes = RefusalProbes()
    probes.open()
    with black_hole() as hole, dead_port() as port, socket.create_server(("127.0.0.1", 0)) as server:
        addresses = [numeric_address("127.0.0.1", number) for number in (hole, port, server.getsockname()[1])]
        for address in addresses:
            assert address is not None
            probes.ask(address)
            probes.ask(address)
        assert len(probes) == 3, "an address is probed once at a time"
        end = monotonic() + LIMIT_S
        answers: list[Address] = []
        while len(probes) > 1:
            assert monotonic() < end
            answers += probes.step(now=100.0)
        assert answers == [addresses[1]]
        assert probes.next_deadline() == 100.0 + PROBE_TIMEOUT_S
        assert probes.step(now=100.0 + PROBE_TIMEOUT_S) == []
        assert len(probes) == 0
    probes.close()


def test_a_thousand_dead_and_silent_endpoints_delay_no_live_peer() -> None:
    with opened() as channel, black_hole() as hole, dead_port("0.0.0.0") as port, Peer() as peer:
        dead = [f"tcp://127.0.1.{n}:{port}" for n in range(1, 251)] + [
            f"tcp://127.0.2.{n}:{port}" for n in range(1, 251)
        ]
        holes = [f"tcp://127.0.1.{n}:{hole}" for n in range(1, 251)] + [
            f"tcp://127.0.2.{n}:{hole}" for n in range(1, 251)
        ]
        for endpoint in dead + holes:
            assert channel.send(endpoint, b"x")
        got = []
        for turn in range(20):
            got += ask(channel, peer, f"turn {turn}")
        got += poll_until(channel, lambda more: len(refused(got + more)) >= len(dead))
        assert sorted(refused(got)) == sorted(dead)
        assert lost(got) == []
        assert channel.snapshot()["connections"] == len(holes) + 1


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4, b"", b"\xff", b"\x16\x03\x01" + bytes(200)]
)
def test_somebody_who_does_not_speak_the_protocol_is_neither_lost_nor_refused(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, opened() as channel:
        served: list[int] = []
        stop = threading.Event()
        server.settimeout(0.1)

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.sendall(answer)
                    served.append(1)

        def sent_and_served(_: object) -> bool:
            channel.send(endpoint, b"x")
            return len(served) > 3 * MAX_FAILED_HANDSHAKES

        endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            got = poll_until(channel, sent_and_served)
        finally:
            stop.set()
            thread.join()
        assert got == []
        assert channel.snapshot()["connections"] <= 1


def test_a_broken_protocol_does_not_make_an_endpoint_unusable_for_good() -> None:
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"BOGUS".ljust(20, b"\0") + bytes(32)
    with opened() as channel:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            channel.send(f"tcp://127.0.0.1:{port}", b"x")
            connection, _ = server.accept()
            with connection:
                connection.sendall(greeting)
                # The library hangs up, and would never connect again by itself.
                while connection.recv(4_096):
                    pass
        with Peer(port=port) as peer:
            ask(channel, peer, "hello")


def test_a_full_queue_drops_and_the_others_are_served() -> None:
    with opened() as channel, black_hole() as hole, Peer() as peer:
        endpoint = f"tcp://127.0.0.1:{hole}"
        sent = [channel.send(endpoint, b"x" * 100) for _ in range(2_000)]
        accepted = sum(sent)
        assert 0 < accepted < 2_000
        assert sent == [True] * accepted + [False] * (2_000 - accepted)
        assert channel.snapshot()["dropped"]["queue_full"] == 2_000 - accepted
        ask(channel, peer, "hello")
        channel.disconnect(endpoint)
        assert channel.send(endpoint, b"x"), "a new connection begins with an empty queue"


def test_a_stopped_peer_with_a_full_queue_goes_on_where_it_stopped() -> None:
    with opened() as channel, Peer() as stopped, Peer() as peer:
        ask(channel, stopped, "hello")
        stopped.stop()
        filling = "f" * 50_000
        accepted = 0
        while channel.send(stopped.endpoint, f"{channel.endpoint}|{accepted}:{filling}".encode()):
            accepted += 1
            assert accepted < 100_000, "nothing bounds the queue"
        ask(channel, peer, "hello")
        stopped.go_on()
        answers = re.compile(rb"%d:(\d+):f+" % stopped.process.pid)
        got = poll_until(channel, lambda got: len(frames_like(answers, got)) >= accepted)
        assert [int(number) for number in frames_like(answers, got)] == list(range(accepted))


def frames_like(pattern: re.Pattern[bytes], got: list[Incoming]) -> list[bytes]:
    """The first group of the frames that match."""
    return [match[1] for match in map(pattern.fullmatch, frames(got)) if match]


def test_the_least_known_connection_makes_room() -> None:
    with opened(max_connections=3) as channel, black_hole() as hole, Peer() as one, Peer() as two:
        ask(channel, one, "hello")
        for n in range(1, 6):
            assert channel.send(f"tcp://127.0.3.{n}:{hole}", b"x")
        ask(channel, two, "hello")
        ask(channel, one, "hello again")
        counts = channel.snapshot()
        assert counts["connections"] == 3
        assert counts["dropped"]["evicted"] == 4


def test_established_connections_are_not_evicted() -> None:
    with opened(max_connections=1) as channel, black_hole() as hole, Peer() as one:
        ask(channel, one, "hello")
        assert not channel.send(f"tcp://127.0.0.1:{hole}", b"x")
        assert channel.snapshot()["dropped"]["too_many_connections"] == 1
