"""The service keeps ranks registered: late servers, restarted servers, refusals, goodbyes."""

from __future__ import annotations

import threading

import pytest

from core.tests.bootstrap.support import (
    RANK_ZERO,
    Collector,
    ServerProcess,
    answering_server,
    ask,
    deaf_ports,
    free_port,
    http_answer,
    mute_servers,
    registration,
    until,
    wire,
)
from kv_core.contract.failures import BootstrapError, InvalidConfig, ManagerClosed
from kv_core.runtime.bootstrap import BootstrapClient, BootstrapServer, HttpService


def instances(server):
    return BootstrapClient(server.address).health().instances()


def test_registered_and_renewed(service, server):
    told = Collector()
    ages = iter(range(1_000_000))
    service.register(server.address, lambda: registration(progress_age_s=float(next(ages))), told)
    assert told.wait_count(1) == [None]
    until(
        lambda: BootstrapClient(server.address).health().ranks[0].progress_age_s >= 3.0,
        "three renewals, each with a new registration",
    )
    assert told.outcomes() == [None]  # renewals that go well are no news
    assert told.threads.isdisjoint({threading.get_ident()})
    assert service.snapshot()["registrations"] == 1


def test_renewals_keep_it_beyond_the_ttl(service):
    told = Collector()
    with BootstrapServer(port=0, registration_ttl_s=3.0) as server:
        service.register(server.address, registration, told)
        told.wait_count(1)
        # Renewed every 0.1 s: 40 renewals take longer than the TTL.
        until(lambda: server.snapshot()["requests"] > 40, "forty renewals")
        assert server._routes.version == 1  # it never lapsed and came back
        assert told.outcomes() == [None]


def test_a_server_that_comes_late(service):
    told = Collector()
    port = free_port()
    service.register(f"127.0.0.1:{port}", registration, told)
    (error,) = told.wait_count(1)
    assert isinstance(error, BootstrapError)
    assert error.status == 0
    with BootstrapServer(port=port) as server:
        assert told.wait_count(2)[1] is None
        assert instances(server) == {RANK_ZERO: "instance-a"}


def test_a_server_killed_and_restarted_on_its_port_is_registered_with_again(service):
    told = Collector()
    with ServerProcess() as first:
        service.register(first.address, registration, told)
        told.wait_count(1)
        before = BootstrapClient(first.address).health().instance_id
        first.kill()
        told.wait_for(lambda seen: seen[-1] is not None, "the loss was told")
        with ServerProcess(first.port) as second:
            told.wait_for(lambda seen: seen[-1] is None and len(seen) >= 3, "registered again")
            route = BootstrapClient(second.address).route()
            assert route.ranks[RANK_ZERO].instance_id == "instance-a"
            assert route.server_instance != before
    assert [outcome is None for outcome in told.outcomes()[:3]] == [True, False, True]


def test_a_server_replaced_between_two_renewals_is_healed_without_a_word(service):
    told = Collector()
    port = free_port()
    with BootstrapServer(port=port) as first:
        service.register(first.address, registration, told)
        told.wait_count(1)
    with BootstrapServer(port=port) as second:
        until(lambda: second.snapshot()["ready"], "the next renewal heals")


def test_a_refusal_is_told_with_its_reason_and_tried_again(new_service, server):
    service = new_service(0.05)
    told = Collector()
    ask(server.address, "PUT", "/route", wire(instance_id="other", page_size=77))
    service.register(server.address, registration, told)
    (error,) = told.wait_count(1)
    assert error.status == 409
    assert "page_size: 77 here, 16 in the registration" in str(error)
    assert instances(server) == {RANK_ZERO: "other"}
    ask(server.address, "DELETE", "/route", {"instance_id": "other"})
    assert told.wait_count(2)[1] is None
    assert instances(server) == {RANK_ZERO: "instance-a"}


def test_two_processes_of_one_rank_do_not_take_turns(new_service, server):
    old, new = Collector(), Collector()
    first, second = new_service(0.05), new_service(0.05)
    first.register(server.address, lambda: registration(instance_id="old"), old)
    old.wait_count(1)
    second.register(server.address, lambda: registration(instance_id="new"), new)
    assert new.wait_count(1) == [None]
    error = old.wait_count(2)[1]
    assert "taken over by the newer instance new" in str(error)
    assert new.outcomes() == [None]
    assert instances(server) == {RANK_ZERO: "new"}
    second.close()  # says goodbye, and the old one is welcome again
    assert old.wait_count(3)[2] is None


def test_unregister_says_goodbye(service, server):
    told = Collector()
    service.register(server.address, registration, told)
    told.wait_count(1)
    service.unregister(server.address)
    service.unregister("127.0.0.1:1")
    until(lambda: server.snapshot()["registrations"] == 0, "the goodbye arrived")
    until(lambda: service.snapshot() == dict.fromkeys(service.snapshot(), 0), "nothing is left of it")
    assert service.health()["exceptions"] == 0


def test_registering_again_replaces_the_instance(service, server):
    told = Collector()
    service.register(server.address, registration, Collector())
    service.register(server.address, lambda: registration(instance_id="b", page_size=3), told)
    assert told.wait_for(lambda seen: None in seen, "b is registered")[-1] is None
    assert instances(server) == {RANK_ZERO: "b"}
    until(lambda: service.snapshot()["goodbyes"] == 0, "the first one's goodbye is over")
    service.unregister(server.address)
    service.register(server.address, lambda: registration(instance_id="c"), told)
    until(lambda: instances(server) == {RANK_ZERO: "c"}, "c came after b's goodbye")


def test_close_says_goodbye_to_the_living_and_does_not_wait_for_the_dead(server):
    service = HttpService("test", probe_interval_s=0.1)
    told = Collector()
    with deaf_ports(10) as deaf, mute_servers(10) as mute:
        service.start()
        for address in [*deaf, *mute]:
            service.register(address, registration, told)
        service.register(server.address, registration, told)
        told.wait_count(1, server.address)
        service.close()
        service.close()
    assert server.snapshot()["registrations"] == 0
    assert service.snapshot() == {"registrations": 0, "goodbyes": 0, "resolves": 0, "watches": 0}
    assert service.health()["exceptions"] == 0
    for start in (
        lambda: service.register(server.address, registration, told),
        lambda: service.resolve(server.address, told),
        lambda: service.watch(server.address, told),
        service.start,
    ):
        with pytest.raises(ManagerClosed):
            start()
    service.unregister(server.address)
    service.unwatch(server.address)


def test_a_registration_that_cannot_be_made_is_told_and_tried_again(service, server):
    told = Collector()
    attempts = []

    def make():
        attempts.append(1)
        if len(attempts) < 3:
            raise RuntimeError("not yet")
        return registration()

    service.register(server.address, make, told)
    outcomes = told.wait_for(lambda seen: None in seen, "registered in the end")
    assert "not yet" in str(outcomes[0])
    assert service.health()["exceptions"] == 2


def test_a_raising_callback_harms_nothing(service, server):
    def raising(address, outcome):
        raise RuntimeError("on purpose")

    service.register(server.address, registration, raising)
    until(lambda: service.health()["exceptions"] == 1, "it was counted")
    until(lambda: server.snapshot()["requests"] >= 3, "renewals go on")
    assert service.health()["alive"]


@pytest.mark.parametrize("answer", [b"220 mail.example ESMTP\r\n", http_answer(200, b"OK"), http_answer(200, b"{}")])
def test_something_else_at_the_address_is_not_taken_for_a_server(service, answer):
    told = Collector()
    with answering_server(answer) as address:
        service.register(address, registration, told)
        (error,) = told.wait_count(1)
        assert isinstance(error, BootstrapError)
        assert "bootstrap_addr" in str(error)


def test_settings_are_checked():
    with pytest.raises(InvalidConfig, match="probe_interval_s"):
        HttpService("x", probe_interval_s=0)
    with pytest.raises(ManagerClosed, match="never started"):
        HttpService("x").resolve("127.0.0.1:1", Collector())
