"""Observers of a manager: bound once, told in order, and one that raises stops no other."""

from __future__ import annotations

import asyncio
import logging
import sys
import types

import pytest

from core.tests.registry.support import ARGS, MANAGER, Site, peer_event, room_event
from kv_core import InvalidConfig, Role
from kv_core.contract.config import TransferConfig
from kv_core.contract.observers import Observers
from kv_core.registry import PluginLoadError, PluginRefused, Registry
from kv_core.registry.backend import Backend

WATCH = """
from kv_core import hookimpl
heard = []

@hookimpl
def kv_room_event(event):
    heard.append(("WHO", event))

@hookimpl
def kv_peer_event(event):
    heard.append(("WHO", event))
"""


@pytest.fixture
def backend(site: Site, registry: Registry) -> Backend:
    site.backend("good")
    return registry.load_backend("good")


class Both:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def kv_room_event(self, event: object) -> None:
        self.heard.append(event)

    def kv_peer_event(self, event: object) -> None:
        self.heard.append(event)


def test_the_runtime_gets_the_record_the_role_the_memory_and_the_settings(backend: Backend, built: list):
    config = TransferConfig(lease_s=7)
    assert backend.create_manager(Role.DECODE, ARGS, config) is MANAGER
    assert built[0][:4] == (backend.record, Role.DECODE, ARGS, config)
    assert built[0][4] == Observers()
    backend.create_manager("prefill", ARGS)  # type: ignore[arg-type]
    assert built[1][1] is Role.PREFILL
    assert built[1][3] == TransferConfig()


@pytest.mark.parametrize(
    ("role", "args", "config", "message"),
    [
        ("both", ARGS, None, "role is 'both', must be Role.PREFILL or Role.DECODE"),
        (Role.PREFILL, {}, None, "args is dict, must be KVArgs"),
        (Role.PREFILL, ARGS, {}, "config is dict, must be TransferConfig or None"),
    ],
)
def test_arguments_of_the_wrong_type(role, args, config, message, backend: Backend, built: list):
    with pytest.raises(InvalidConfig, match=message):
        backend.create_manager(role, args, config)
    assert built == []


def test_observers_of_the_backend_of_plugins_and_of_the_call_are_bound(site: Site, registry: Registry, built: list):
    own = site.backend("good", after=WATCH.replace("WHO", "own"))
    other = site.backend("other", distribution="kv-other", after=WATCH.replace("WHO", "other"))
    watch = site.plugin("watch", WATCH.replace("WHO", "plugin"))
    given = Both()
    backend = registry.load_backend("good")
    registry.load_backend("other")
    backend.create_manager(Role.PREFILL, ARGS, observers=(given,))
    observers = built[0][4]
    assert isinstance(observers, Observers)
    assert all(callable(observer) for observer in (*observers.room, *observers.peer))
    assert (len(observers.room), len(observers.peer)) == (3, 3)
    first, second = room_event(), peer_event()
    observers.tell_room(first)
    observers.tell_peer(second)
    assert sys.modules[own].heard == [("own", first), ("own", second)]
    assert sys.modules[watch].heard == [("plugin", first), ("plugin", second)]
    assert given.heard == [first, second]
    assert sys.modules[other].heard == []


def test_a_broken_observer_plugin_does_not_stop_a_manager_unless_asked_to(site: Site, built: list):
    environ: dict[str, str] = {}
    registry = Registry(environ)
    site.backend("good")
    site.plugin("broken", "raise SystemExit('no')", distribution="kv-broken")
    backend = registry.load_backend("good")
    assert backend.create_manager(Role.PREFILL, ARGS) is MANAGER
    assert "plugin 'broken' of kv-broken 0.3" in str(registry.broken_plugins["broken"])
    environ["KV_CORE_STRICT_PLUGINS"] = "1"
    with pytest.raises(PluginLoadError, match="raised SystemExit: no") as caught:
        backend.create_manager(Role.PREFILL, ARGS)
    assert isinstance(caught.value.__cause__, SystemExit)
    environ["KV_CORE_DISABLED_PLUGINS"] = "broken"
    assert backend.create_manager(Role.PREFILL, ARGS) is MANAGER
    assert len(built) == 2


def test_a_refused_observer_plugin_is_an_error_if_asked_for(site: Site, built: list):
    site.backend("good")
    site.plugin("broken", "def kv_room_event(event): ...", distribution="kv-broken")
    with pytest.raises(PluginRefused, match="kv-broken 0.3: kv_room_event has no @hookimpl marker"):
        Registry({"KV_CORE_STRICT_PLUGINS": "1"}).load_backend("good").create_manager(Role.PREFILL, ARGS)
    assert built == []


class Misspelt(Both):
    def kv_room_evnt(self, event): ...


class KeywordOnly:
    def kv_room_event(self, *, event): ...


class Coroutine:
    async def kv_peer_event(self, event): ...


class TwoParameters:
    def kv_room_event(self, event, other): ...


class WithBackend(Both):
    def kv_backend(self): ...


class Attribute:
    kv_room_event = "print"


@pytest.mark.parametrize(
    ("observer", "message"),
    [
        (Both, r"observers\[1\]: class .*Both is not an instance. Append the forgotten parentheses: Both\(\)"),
        (object(), r"has nothing to call. Give it a method kv_room_event or kv_peer_event"),
        (print, r"function print is neither a module nor an instance with hooks"),
        (None, r"None is neither a module nor"),
        (Misspelt(), r"kv_room_evnt is not called on an observer. Rename it to kv_room_event"),
        (WithBackend(), r"kv_backend is not called on an observer"),
        (KeywordOnly(), r"parameter event is keyword-only.*Write `def kv_room_event\(event\)`"),
        (TwoParameters(), r"parameter other is unknown"),
        (Coroutine(), r"kv_peer_event is an async function"),
        (Attribute(), r"kv_room_event is an instance of builtins.str and not a plain function"),
    ],
    # The same in every process that shares the tests: no address of an object.
    ids=lambda value: "" if isinstance(value, str) else getattr(value, "__name__", type(value).__name__),
)
def test_observers_that_could_not_be_called_are_refused(observer, message: str, backend: Backend, built: list):
    with pytest.raises(InvalidConfig, match=message):
        backend.create_manager(Role.PREFILL, ARGS, observers=(Both(), observer))
    assert built == []


def test_an_observer_given_twice_is_refused(backend: Backend, built: list):
    one = Both()
    with pytest.raises(InvalidConfig, match=r"observers\[2\]: the same object is given twice"):
        backend.create_manager(Role.PREFILL, ARGS, observers=(one, Both(), one))


def test_a_module_and_an_observer_of_fewer_parameters(backend: Backend, built: list):
    heard: list[str] = []

    class Short:
        def kv_room_event(self) -> None:
            heard.append("short")

    module = types.ModuleType("watching")
    module.kv_room_event = lambda event: heard.append("module")  # type: ignore[attr-defined]
    backend.create_manager(Role.PREFILL, ARGS, observers=[Short(), module])
    built[0][4].tell_room(room_event())
    assert heard == ["short", "module"]


@pytest.mark.parametrize("kind", [ValueError, SystemExit, asyncio.CancelledError, GeneratorExit, StopIteration])
def test_an_observer_that_raises_stops_no_other(kind: type[BaseException], caplog: pytest.LogCaptureFixture):
    heard: list[object] = []

    def raises(event: object) -> None:
        raise kind("no")

    observers = Observers(room=(heard.append, raises, heard.append), peer=(raises, heard.append))
    observers.tell_room(room_event())
    assert heard == [room_event()] * 2
    observers.tell_peer(peer_event())
    assert heard[2:] == [peer_event()]
    assert observers.errors == 2
    assert f"raises raised {kind.__name__}" in caplog.text


def test_a_keyboard_interrupt_passes():
    def raises(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Observers(room=(raises,)).tell_room(room_event())


def test_failures_are_logged_at_a_limited_rate_by_the_events_time(caplog: pytest.LogCaptureFixture):
    def first(event: object) -> None:
        raise ValueError("first")

    def second(event: object) -> None:
        raise ValueError("second")

    logger = logging.getLogger("test.of.observers")
    observers = Observers(room=(first, second), logger=logger, log_interval_s=10.0)
    for time_s in (100.0, 101.0, 109.9, 110.0, 111.0):
        observers.tell_room(room_event(time_s))
    records = [record for record in caplog.records if record.name == logger.name]
    assert [str(record.exc_info[1]) for record in records if record.exc_info] == ["first", "second"] * 2
    assert "(0 more since" in records[0].getMessage()
    assert "(2 more since" in records[2].getMessage()
    assert "test_failures_are_logged" in records[0].getMessage()
    assert observers.errors == 10


def test_return_values_are_ignored_and_nobody_is_no_trouble():
    Observers().tell_room(room_event())
    Observers().tell_peer(peer_event())
    observers = Observers(room=[lambda event: False, lambda event: True])  # type: ignore[arg-type]
    observers.tell_room(room_event())
    assert observers.errors == 0
    assert isinstance(observers.room, tuple)
