"""The service watches many servers at once, and each on its own."""

from __future__ import annotations

import resource
import signal
import socket
from contextlib import ExitStack, contextmanager

from core.tests.bootstrap.support import (
    RANK_ZERO,
    Collector,
    ServerProcess,
    answering_server,
    ask,
    deaf_ports,
    http_answer,
    mute_servers,
    until,
    wire,
)
from kv_core.contract.failures import BootstrapError
from kv_core.runtime.bootstrap import BootstrapConnectionError, BootstrapServer, ConnectionTrouble, HealthReport


def test_reports_then_the_death_then_the_new_instance(service):
    told = Collector()
    with ServerProcess() as first:
        ask(first.address, "PUT", "/route", wire())
        service.watch(first.address, told)
        seen = told.wait_count(3)
        assert all(isinstance(outcome, HealthReport) for outcome in seen)
        assert seen[0].ready
        assert seen[0].instances() == {RANK_ZERO: "instance-a"}
        first.kill()
        error = told.wait_for(lambda seen: isinstance(seen[-1], BootstrapError), "the death was told")[-1]
        assert error.immediate
        assert error.trouble in (ConnectionTrouble.REFUSED, ConnectionTrouble.CLOSED)
        with ServerProcess(first.port):
            report = told.wait_for(lambda seen: isinstance(seen[-1], HealthReport), "the new one was seen")[-1]
            assert report.instance_id != seen[0].instance_id
            assert (report.ready, report.status, report.ranks) == (False, "waiting", [])


def test_fifty_black_holes_do_not_hide_the_death_of_the_fifty_first(new_service):
    service = new_service(0.5)
    told = Collector()
    with ExitStack() as stack:
        holes = stack.enter_context(deaf_ports(25)) + stack.enter_context(mute_servers(25))
        healthy = stack.enter_context(ServerProcess())
        victim = stack.enter_context(ServerProcess())
        for address in holes:
            service.watch(address, told)
        service.watch(healthy.address, told)
        service.watch(victim.address, told)
        for address in holes:
            told.wait_count(2, address)
        told.wait_count(2, victim.address)
        alive_before = len(told.outcomes(healthy.address))
        holes_before = [len(told.outcomes(address)) for address in holes]
        victim.kill()
        told.wait_for(lambda seen: isinstance(seen[-1], BootstrapError), "the death was told", victim.address)
        alive_meanwhile = len(told.outcomes(healthy.address)) - alive_before
        # Intervals are counted by the probes of a server that is well: no clock is asked.
        assert alive_meanwhile <= 4
        for address, before in zip(holes, holes_before, strict=True):
            assert len(told.outcomes(address)) - before <= 4
            told.wait_count(before + 1, address)
        assert told.outcomes(victim.address)[-1].immediate
        for address in holes:
            outcomes = told.outcomes(address)
            assert all(isinstance(one, BootstrapConnectionError) for one in outcomes)
            assert {one.trouble for one in outcomes} == {ConnectionTrouble.TIMEOUT}
        assert all(isinstance(one, HealthReport) for one in told.outcomes(healthy.address))
        assert service.snapshot()["watches"] == 52
        for address in holes:
            service.unwatch(address)
        until(lambda: service.snapshot()["watches"] == 2, "fifty are no longer watched")
    assert service.health()["exceptions"] == 0


def test_a_probe_asks_on_a_connection_of_its_own(service, server):
    told = Collector()
    service.watch(server.address, told)
    told.wait_count(3)
    # The old process drains: it keeps its connections but takes no new ones. Keep-alive would go on talking to it.
    port = server.port
    server.close()
    with BootstrapServer(port=port) as second:
        told.wait_for(
            lambda seen: isinstance(seen[-1], HealthReport) and seen[-1].instance_id == second.instance_id,
            "the new instance was seen",
        )
        until(lambda: second.snapshot()["connections"] == 0, "no connection is kept")


def test_unwatched_is_silent_and_watching_again_replaces_the_callback(service, server):
    first, second = Collector(), Collector()
    service.watch(server.address, first)
    first.wait_count(1)
    service.watch(server.address, second)
    second.wait_count(2)
    count = len(first.outcomes())
    second.wait_count(5)
    assert len(first.outcomes()) == count
    assert service.snapshot()["watches"] == 1
    service.unwatch(server.address)
    service.unwatch("127.0.0.1:1")
    until(lambda: service.snapshot()["watches"] == 0, "nothing is watched")


def test_a_raising_callback_does_not_end_the_watch(service, server):
    told = Collector()

    def raising(address, outcome):
        told(address, outcome)
        raise RuntimeError("on purpose")

    service.watch(server.address, raising)
    told.wait_count(5)
    assert service.health()["exceptions"] >= 4
    assert service.health()["alive"]


def test_a_constant_ok_is_no_health(service):
    told = Collector()
    with answering_server(http_answer(200, b"OK")) as address:
        service.watch(address, told)
        error = told.wait_count(1)[0]
    assert isinstance(error, BootstrapError)
    assert error.status == 200
    assert "no bootstrap server that this version understands" in str(error)


@contextmanager
def no_descriptors_left():
    """Take every descriptor that this process may still open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    taken = []
    try:
        try:
            while True:
                taken.append(socket.socket())
        except OSError:
            yield
    finally:
        for one in taken:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_nobody_is_declared_dead(service):
    told = Collector()
    with ServerProcess() as server:
        service.watch(server.address, told)
        told.wait_count(2)
        with no_descriptors_left():
            until(lambda: service.health()["exceptions"] >= 2, "probes could not be sent")
        count = len(told.outcomes())
        told.wait_count(count + 2)
    # A busy machine may let a probe wait too long; that it could not be sent at all must never have been told.
    for outcome in told.outcomes()[: count + 2]:
        late = isinstance(outcome, BootstrapConnectionError) and outcome.trouble is ConnectionTrouble.TIMEOUT
        assert late or isinstance(outcome, HealthReport), outcome


def test_a_frozen_server_is_missed_and_not_declared_gone(service):
    told = Collector()
    with ServerProcess() as server:
        service.watch(server.address, told)
        before = told.wait_count(1)[0]
        server.process.send_signal(signal.SIGSTOP)
        error = told.wait_for(lambda seen: isinstance(seen[-1], BootstrapError), "the silence was told")[-1]
        assert error.trouble is ConnectionTrouble.TIMEOUT
        assert not error.immediate
        server.process.send_signal(signal.SIGCONT)
        after = told.wait_for(lambda seen: isinstance(seen[-1], HealthReport), "it is back")[-1]
        assert after.instance_id == before.instance_id
