"""Every wrong plugin that pluggy takes in silence is refused, by name, with its distribution and the mend.

Holds for pluggy 1.6 and 1.7 alike: run with another version ahead on PYTHONPATH to see it for that one.
"""

from __future__ import annotations

import importlib
import types
from dataclasses import dataclass

import pytest

from core.tests.registry.support import Site
from kv_core import IncompatibleBackend, hookimpl
from kv_core.registry import PluginRefused, Registry, Source, StrictPluginManager
from kv_core.registry.source import PLUGINS

SOURCE = Source(PLUGINS, "watch", "kv_watch", "kv-watch", "0.3")


@dataclass
class Wrong:
    """One mistake: the code, what the refusal says of it, and the mend that it names."""

    id: str
    text: str
    reason: str
    mend: str
    attribute: str = ""


EVENT = "`def kv_room_event(event)`"
WRONG = (
    Wrong(
        "unknown hook",
        "@hookimpl\ndef kv_room_evnt(event): ...",
        "there is no hook 'kv_room_evnt'",
        "Rename it to kv_room_event",
    ),
    Wrong("unknown hook, no likeness", "@hookimpl\ndef on_start(): ...", "no hook 'on_start'", "rename or remove it"),
    Wrong(
        "unknown hook by specname",
        "@hookimpl(specname='kv_rooms')\ndef kv_room_event(event): ...",
        "there is no hook 'kv_rooms'",
        "Rename it to kv_room_event",
    ),
    Wrong(
        "forgotten marker",
        "def kv_room_event(event): ...",
        "kv_room_event has no @hookimpl marker",
        "Write @hookimpl (from kv_core) above it",
    ),
    Wrong(
        "forgotten marker on a helper",
        "def kv_helper(): ...",
        "kv_helper has no @hookimpl marker",
        "rename it if it is no hook",
    ),
    Wrong(
        "marker of another project",
        "import pluggy\n@pluggy.HookimplMarker('pytest')\ndef kv_room_event(event): ...",
        "hookimpl marker of the project 'pytest'",
        "Import the marker with `from kv_core import hookimpl`",
    ),
    Wrong("no hook at all", "ANSWER = 42", "implements no hook", "Mark at least one of kv_backend"),
    Wrong(
        "keyword-only parameter",
        "@hookimpl\ndef kv_room_event(*, event): ...",
        "kv_room_event: parameter event is keyword-only",
        EVENT,
    ),
    Wrong(
        "defaulted parameter",
        "@hookimpl\ndef kv_room_event(event=None): ...",
        "parameter event=None has a default",
        EVENT,
    ),
    Wrong("variadic positional", "@hookimpl\ndef kv_room_event(*args): ...", "parameter *args would always be", EVENT),
    Wrong(
        "variadic keywords",
        "@hookimpl\ndef kv_room_event(event, **kwargs): ...",
        "parameter **kwargs would always be empty",
        EVENT,
    ),
    Wrong("unknown parameter", "@hookimpl\ndef kv_room_event(x): ...", "parameter x is unknown", EVENT),
    Wrong(
        "misspelt parameter",
        "@hookimpl\ndef kv_peer_event(evnt): ...",
        "parameter evnt is unknown (meant: event?)",
        "`def kv_peer_event(event)`",
    ),
    Wrong(
        "misspelt parameter with a default",
        "@hookimpl\ndef kv_room_event(evnt=None): ...",
        "parameter evnt=None is unknown (meant: event?)",
        EVENT,
    ),
    Wrong("async", "@hookimpl\nasync def kv_room_event(event): ...", "kv_room_event is an async function", EVENT),
    Wrong("generator", "@hookimpl\ndef kv_room_event(event):\n    yield", "kv_room_event is a generator", EVENT),
    Wrong(
        "async generator",
        "@hookimpl\nasync def kv_room_event(event):\n    yield",
        "kv_room_event is an async generator",
        EVENT,
    ),
    Wrong(
        "wrapper",
        "@hookimpl(wrapper=True)\ndef kv_room_event(event):\n    return (yield)",
        "kv_room_event is marked as a wrapper",
        "Use plain @hookimpl without arguments",
    ),
    Wrong(
        "class instead of an instance",
        "class Watch:\n    @hookimpl\n    def kv_room_event(self, event): ...",
        "Watch is not an instance",
        "Append the forgotten parentheses: Watch() instead of Watch",
        attribute=":Watch",
    ),
    Wrong(
        "function instead of a module",
        "@hookimpl\ndef kv_room_event(event): ...",
        "function kv_room_event is neither a module nor an instance with hooks",
        "Point to the module that has the hooks",
        attribute=":kv_room_event",
    ),
    Wrong("None", "nothing = None", "None is neither a module nor", "Point to the module", attribute=":nothing"),
    Wrong(
        "forgotten self",
        "class Watch:\n    @hookimpl\n    def kv_room_event(event): ...\nwatch = Watch()",
        "kv_room_event is a method whose first parameter is 'event'",
        "`def kv_room_event(self, event)`",
        attribute=":watch",
    ),
    Wrong(
        "no parameter for self",
        "class Watch:\n    @hookimpl\n    def kv_room_event(): ...\nwatch = Watch()",
        "the signature of kv_room_event can't be read",
        EVENT,
        attribute=":watch",
    ),
    Wrong(
        "self in a module",
        "@hookimpl\ndef kv_room_event(self, event): ...",
        "parameter self is unknown",
        EVENT,
    ),
    Wrong(
        "marker above staticmethod",
        "class Watch:\n    @hookimpl\n    @staticmethod\n    def kv_room_event(event): ...\nwatch = Watch()",
        "the marker of kv_room_event is on the staticmethod",
        "Put @hookimpl beneath @staticmethod",
        attribute=":watch",
    ),
    Wrong(
        "property",
        "class Watch:\n    @property\n    def kv_room_event(self):\n        raise SystemExit(9)\nwatch = Watch()",
        "kv_room_event is an instance of builtins.property and not a plain function",
        "Write `def kv_room_event(...)`",
        attribute=":watch",
    ),
    Wrong(
        "cached function",
        "import functools\n@functools.lru_cache\n@hookimpl\ndef kv_room_event(event): ...",
        "kv_room_event is function kv_room_event and not a plain function",
        "without a property, partial or cache around it",
    ),
    Wrong(
        "partial",
        "import functools\n@hookimpl\ndef f(a, event): ...\n"
        "del f\nkv_room_event = hookimpl(functools.partial(print, 1))",
        "kv_room_event is an instance of functools.partial",
        "without a property, partial or cache around it",
    ),
    Wrong(
        "hook that is no function",
        "kv_doctor_checks = []",
        "kv_doctor_checks is an instance of builtins.list",
        "Write `def kv_doctor_checks(...)`",
    ),
)
TABLE = pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.id)
HEADER = "from kv_core import hookimpl\n"


@TABLE
def test_an_observer_plugin_with_the_mistake_is_refused(wrong: Wrong, site: Site):
    site.plugin("watch", HEADER + wrong.text, attribute=wrong.attribute)
    with pytest.raises(PluginRefused) as caught:
        Registry(environ={"KV_CORE_STRICT_PLUGINS": "1"}).load_plugins()
    message = str(caught.value)
    assert "plugin 'watch' of kv-watch 0.3: " in message
    assert wrong.reason in message
    assert wrong.mend in caught.value.hint
    assert message.endswith(caught.value.hint)


@TABLE
def test_a_backend_with_the_mistake_is_refused(wrong: Wrong, site: Site, registry: Registry):
    """The backend itself is good: only what stands beside it is wrong."""
    if wrong.id == "no hook at all":
        module = site.module(wrong.text)
        site.distribution("kv-bad", "3.1", backends={"bad": module})
    else:
        site.backend("bad", distribution="kv-bad", version="3.1", after=wrong.text, attribute=wrong.attribute)
    with pytest.raises(IncompatibleBackend) as caught:
        registry.load_backend("bad")
    message = str(caught.value)
    assert "backend 'bad' of kv-bad 3.1 " in message
    assert wrong.reason in message
    assert wrong.mend in caught.value.hint
    assert caught.value.backend == "bad"
    assert caught.value.distributions == ("kv-bad 3.1",)


@TABLE
def test_a_refused_plugin_is_not_registered_and_its_mended_form_is_taken(wrong: Wrong, site: Site):
    plugin = importlib.import_module(site.module(HEADER + wrong.text))
    if wrong.attribute:
        plugin = getattr(plugin, wrong.attribute[1:])
    manager = StrictPluginManager()
    for _ in range(2):
        with pytest.raises(PluginRefused, match="plugin 'watch'"):
            manager.admit(plugin, SOURCE)
        assert manager.list_name_plugin() == []
        assert all(not hook.get_hookimpls() for hook in vars(manager.hook).values())
    heard: list[object] = []
    assert manager.admit(Listener(heard), SOURCE) is True
    manager.hook.kv_room_event(event=1)
    assert heard == [1]


class Listener:
    """A good plugin."""

    def __init__(self, heard: list[object]) -> None:
        self.heard = heard

    @hookimpl
    def kv_room_event(self, event: object) -> None:
        self.heard.append(event)

    @property
    def trap(self) -> object:
        """pluggy 1.6 would evaluate this while registering."""
        raise SystemExit("a property was evaluated")


def test_good_plugins_in_every_form_are_taken():
    module = types.ModuleType("kv_watch")
    calls: list[str] = []

    @hookimpl
    def kv_room_event(event):
        calls.append("module")

    module.kv_room_event = kv_room_event  # type: ignore[attr-defined]

    class Many:
        @hookimpl(specname="kv_room_event")
        def anything(self, event):
            calls.append("method")

        @staticmethod
        @hookimpl(tryfirst=True)
        def kv_peer_event(event):
            calls.append("static")

        @classmethod
        @hookimpl
        def kv_doctor_checks(cls):
            return [cls.__name__]

    class Fewer:
        @hookimpl
        def kv_room_event(self):
            calls.append("no argument")

    manager = StrictPluginManager()
    for name, plugin in (("module", module), ("many", Many()), ("fewer", Fewer())):
        assert manager.admit(plugin, Source(PLUGINS, name, "", "kv-watch", "0.3"))
    manager.hook.kv_room_event(event=1)
    manager.hook.kv_peer_event(event=1)
    assert calls == ["no argument", "method", "module", "static"]
    assert manager.hook.kv_doctor_checks() == [["Many"]]
    for hook in manager.hooks("kv_room_event"):
        hook.bound_to_event()("event")
    assert calls[4:] == ["module", "method", "no argument"]


def test_the_same_object_twice_and_the_same_name_twice_are_refused():
    manager = StrictPluginManager()
    first, other = Listener([]), Listener([])
    manager.admit(first, SOURCE)
    with pytest.raises(PluginRefused) as caught:
        manager.admit(first, Source(PLUGINS, "again", "kv_again", "kv-again", "9"))
    assert "plugin 'again' of kv-again 9: the same object is registered already, as 'watch' of kv-watch 0.3" in str(
        caught.value
    )
    assert caught.value.hint == "Keep one of the two entry points"
    with pytest.raises(PluginRefused, match="'watch' of kv-again 9: the name is registered already, as 'watch'"):
        manager.admit(other, Source(PLUGINS, "watch", "kv_again", "kv-again", "9"))
    assert [name for name, _ in manager.list_name_plugin()] == ["watch"]
    manager.unregister(name="watch")
    assert manager.admit(other, SOURCE)
    assert manager.plugin_hooks("watch")[0].function == other.kv_room_event


def test_register_makes_the_same_checks_and_blocked_names_are_skipped():
    manager = StrictPluginManager(blocked=["loud"])
    assert manager.register(Listener([]), "loud") is None
    assert manager.hooks("kv_room_event") == []
    assert manager.register(Listener([]), "quiet") == "quiet"
    with pytest.raises(PluginRefused, match="plugin 'empty' of no distribution .*implements no hook"):
        manager.register(types.SimpleNamespace(), "empty")
    assert manager.source("quiet").name == "quiet"


def test_what_pluggy_itself_refuses_is_undone(monkeypatch: pytest.MonkeyPatch):
    """Should pluggy learn a check that is missing here, 1.6 must not keep what it refused."""

    def refuse(self, hook, hookimpl):
        raise ValueError("a rule of tomorrow")

    manager = StrictPluginManager()
    with monkeypatch.context() as patch:
        patch.setattr("pluggy.PluginManager._verify_hook", refuse)
        with pytest.raises(PluginRefused, match=r"plugin 'watch' of kv-watch 0.3: pluggy .* refuses it: a rule of"):
            manager.admit(Listener([]), SOURCE)
    assert manager.list_name_plugin() == []
    assert manager.admit(Listener([]), SOURCE)


def test_a_backend_without_kv_backend_is_refused(site: Site, registry: Registry):
    module = site.module(HEADER + "@hookimpl\ndef kv_room_event(event): ...")
    site.distribution("kv-bad", "3.1", backends={"bad": module})
    with pytest.raises(IncompatibleBackend, match=r"backend 'bad' of kv-bad 3.1 .*the hook kv_backend is missing"):
        registry.load_backend("bad")


def test_kv_backend_in_the_group_of_observers_is_refused(site: Site):
    site.plugin("watch", HEADER + "@hookimpl\ndef kv_backend(): ...")
    with pytest.raises(PluginRefused, match=r"kv-watch 0.3: the hook kv_backend is never called.*Move the entry point"):
        Registry(environ={"KV_CORE_STRICT_PLUGINS": "yes"}).load_plugins()
