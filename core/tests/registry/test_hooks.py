"""Every hook of the contract, once through the whole path: an installed plugin, loaded, called. A new one needs its test."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from core.tests.registry.support import ARGS, Site, peer_event, room_event
from kv_core import Role
from kv_core.contract.observers import Observers
from kv_core.contract.records import BackendRecord
from kv_core.registry import Registry, doctor_checks
from kv_core.registry.hook_rules import SPECIFICATIONS


def backend(site: Site, registry: Registry, built: list) -> None:
    site.backend("good")
    assert isinstance(registry.load_backend("good").record, BackendRecord)


def watch(site: Site, registry: Registry, built: list, hook: str) -> tuple[Observers, list]:
    site.backend("good")
    text = f"from kv_core import hookimpl\nheard = []\n@hookimpl\ndef {hook}(event):\n    heard.append(event)"
    module = site.plugin("watch", text)
    registry.load_backend("good").create_manager(Role.DECODE, ARGS)
    observers = built[0][4]
    observers.tell_room(room_event())
    observers.tell_peer(peer_event())
    return observers, sys.modules[module].heard


def room(site: Site, registry: Registry, built: list) -> None:
    observers, heard = watch(site, registry, built, "kv_room_event")
    assert heard == [room_event()]
    assert observers.peer == ()


def peer(site: Site, registry: Registry, built: list) -> None:
    observers, heard = watch(site, registry, built, "kv_peer_event")
    assert heard == [peer_event()]
    assert observers.room == ()


def doctor(site: Site, registry: Registry, built: list) -> None:
    text = """
        from kv_core import hookimpl
        from kv_core.contract.records import DoctorCheck
        @hookimpl
        def kv_doctor_checks():
            return [DoctorCheck("one", "One", lambda: [])]
    """
    site.plugin("watch", text)
    assert [check.id for check in doctor_checks(registry)] == ["one"]


TESTS: dict[str, Callable[[Site, Registry, list], None]] = {
    "kv_backend": backend,
    "kv_room_event": room,
    "kv_peer_event": peer,
    "kv_doctor_checks": doctor,
}


@pytest.mark.parametrize("hook", sorted(SPECIFICATIONS))
def test_hook(hook: str, site: Site, registry: Registry, built: list):
    TESTS[hook](site, registry, built)


def test_no_test_of_a_hook_that_is_gone():
    assert sorted(TESTS) == sorted(SPECIFICATIONS)
