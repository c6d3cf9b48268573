"""Listing reads metadata only; loading imports one plugin; each failure has its owner, its cause and a hint."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kv_core
from core.tests.registry.support import Site, backend_text
from kv_core import BackendLoadError, BackendNotFound, Capability, IncompatibleBackend
from kv_core import registry as face
from kv_core.registry import Registry
from kv_core.registry.hints import kv_core_version


def listed(registry: Registry, name: str):
    (found,) = [entry for entry in registry.list_backends() if entry.name == name]
    return found


def test_listing_names_distributions_and_imports_nothing(site: Site, registry: Registry):
    module = site.backend("good", before="raise SystemExit('imported')")
    entry = listed(registry, "good")
    assert (entry.distributions, entry.versions, entry.value) == (("kv-good",), ("1.2",), module)
    assert not entry.disabled
    assert module not in sys.modules
    assert [e.name for e in registry.list_backends()] == sorted(e.name for e in registry.list_backends())


def test_importing_and_listing_is_light(site: Site):
    """In a process of its own: what this one has imported for other tests doesn't count."""
    module = site.backend("good")
    watch = site.plugin("watch", "raise SystemExit('imported')")
    heavy = ["zmq", "aiohttp", "requests", "asyncio", "kv_core.runtime", "kv_fake", module, watch]
    program = f"""
        import sys
        import kv_core
        names = [entry.name for entry in kv_core.list_backends()]
        assert "good" in names, names
        loaded = [name for name in {heavy} if name in sys.modules]
        assert not loaded, loaded
        kv_core.load_backend("good")
        loaded = [name for name in {heavy} if name in sys.modules]
        assert loaded == [{module!r}], loaded
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [site.path, os.environ.get("PYTHONPATH", "")]))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_a_good_backend_loads_once_and_alone(site: Site, registry: Registry):
    module = site.backend("good")
    other = site.backend("other", distribution="kv-other", before="raise SystemExit('imported')")
    backend = registry.load_backend("good")
    assert backend.info.name == "good"
    assert backend.info.capabilities == {Capability.WRITE, Capability.EMBEDDED}
    assert backend.record.transport.__module__ == module
    assert registry.load_backend("good") is backend
    assert repr(backend) == "<Backend 'good' of kv-good 1.2>"
    assert module in sys.modules
    assert other not in sys.modules


def test_threads_that_load_the_same_backend_get_the_same_one(site: Site, registry: Registry):
    site.backend("good")
    with ThreadPoolExecutor(8) as pool:
        backends = set(pool.map(lambda _: id(registry.load_backend("good")), range(32)))
    assert len(backends) == 1


def test_the_face_is_the_registry_of_the_process(site: Site):
    site.backend("good", distribution="kv-face")
    assert "good" in [entry.name for entry in kv_core.list_backends()]
    backend = kv_core.load_backend("good")
    assert isinstance(backend, kv_core.Backend)
    assert "good" in [report.name for report in face.describe_backends()]
    assert copy.copy(backend) is backend  # by its name, as pickle would: found again where it is unpickled


def test_an_instance_may_be_the_plugin(site: Site, registry: Registry):
    after = """
        class Plugin:
            @hookimpl
            def kv_backend(self):
                return BackendRecord(info=BackendInfo(**INFO), **RECORD)
        plugin = Plugin()
    """
    site.backend("good", after=after, attribute=":plugin")
    assert registry.load_backend("good").info.version == "1.2"


def test_not_found_says_what_is_installed_and_how_to_install(site: Site, registry: Registry):
    site.backend("good")
    with pytest.raises(BackendNotFound) as caught:
        registry.load_backend("Goood")
    message = str(caught.value)
    assert "no backend named 'Goood' is installed; installed are:" in message
    assert "good (kv-good 1.2)" in message
    assert "Did you mean 'good'?" in message
    assert "pip install kv-NAME" in message
    assert sys.executable in message
    assert isinstance(caught.value, LookupError)


def test_a_disabled_backend_is_listed_but_not_loaded(site: Site):
    module = site.backend("good")
    environ = {"KV_CORE_DISABLED_PLUGINS": " other, good ,"}
    registry = Registry(environ)
    assert listed(registry, "good").disabled
    with pytest.raises(BackendNotFound, match="'good' of kv-good 1.2 is disabled by KV_CORE_DISABLED_PLUGINS. Remove"):
        registry.load_backend("good")
    with pytest.raises(BackendNotFound, match=r"good \(kv-good 1.2, disabled\)"):
        registry.load_backend("nothing-like-it")
    assert module not in sys.modules
    environ.clear()
    assert registry.load_backend("good").info.name == "good"
    environ["KV_CORE_DISABLED_PLUGINS"] = "good"
    with pytest.raises(BackendNotFound, match="is disabled"):
        registry.load_backend("good")


LIBRARY = "libibverbs.so.1: cannot open shared object file: No such file or directory"
FAILURES = [
    ("import kv_no_such_engine", ModuleNotFoundError, "Install the Python package that has the module kv_no_such"),
    (
        f"raise OSError({LIBRARY!r})",
        OSError,
        "The dynamic linker can't find libibverbs.so.1: install the package libib",
    ),
    (f"raise ImportError({LIBRARY!r})", ImportError, "or add its folder to LD_LIBRARY_PATH before Python starts"),
    (
        "raise OSError('libfoo.so.3: cannot open shared object file: ...')",
        OSError,
        "can't find libfoo.so.3: install the system package that has it",
    ),
    (
        'raise ImportError("/lib/libstdc++.so.6: version `GLIBCXX_3.4.32\' not found (required by engine.so)")',
        ImportError,
        "built for a newer system than this one, which has no GLIBCXX_3.4.32",
    ),
    ("raise ImportError('x.so: undefined symbol: cuMemFoo')", ImportError, "don't belong together were loaded (nobody"),
    ("raise OSError('x.so: invalid ELF header')", OSError, "made for another kind of machine"),
    (
        "from kv_core import Tomorrow",
        ImportError,
        f"was written for another version of kv-core than the installed {kv_core_version()}, which has no Tomorrow",
    ),
    ("raise SystemExit(3)", SystemExit, "ends the process instead of raising: run python -c 'import kv_plugin"),
    ("import sys; sys.exit('no RDMA')", SystemExit, "ends the process instead of raising"),
    ("1 / 0", ZeroDivisionError, "to see the whole traceback, or reinstall kv-broken"),
    ("raise AssertionError", AssertionError, "to see the whole traceback, or reinstall kv-broken"),
    (
        f"try:\n    raise OSError({LIBRARY!r})\nexcept OSError as e:\n    raise RuntimeError('no engine') from e",
        RuntimeError,
        "can't find libibverbs.so.1",
    ),
]


@pytest.mark.parametrize("where", ["import", "kv_backend", "preflight"])
@pytest.mark.parametrize(("code", "kind", "hint"), FAILURES, ids=[code[:40] for code, _, _ in FAILURES])
def test_what_a_plugin_raises_becomes_a_load_error(code, kind, hint, where, site: Site, registry: Registry):
    body = textwrap.indent(code, "    ")
    changes = {
        "import": {"before": code},
        "kv_backend": {"attribute": ":plugin", "after": _instance(body)},
        "preflight": {"change": f"def preflight():\n{body}\nRECORD['preflight'] = preflight"},
    }
    site.backend("broken", distribution="kv-broken", version="0.4", **changes[where])
    with pytest.raises(BackendLoadError) as caught:
        registry.load_backend("broken")
    error = caught.value
    message = str(error)
    assert type(error.__cause__) is kind
    assert "backend 'broken' of kv-broken 0.4 " in message
    doing = "importing kv_plugin" if where == "import" else f"{where}()"
    assert doing in message
    assert f"raised {kind.__name__}: {error.__cause__}" in message
    assert hint in error.hint
    assert message.endswith(error.hint)
    assert isinstance(error, ImportError)
    assert (error.backend, error.distributions) == ("broken", ("kv-broken 0.4",))


def _instance(body: str) -> str:
    return (
        f"class Plugin:\n    @hookimpl\n    def kv_backend(self):\n{textwrap.indent(body, '    ')}\nplugin = Plugin()"
    )


def test_a_missing_module_that_the_distribution_requires(site: Site, registry: Registry):
    site.backend("broken", before="import kv_no_such.part", requires=("numpy", "kv-no-such-engine>=2 ; extra == 'x'"))
    with pytest.raises(BackendLoadError) as caught:
        registry.load_backend("broken")
    assert "kv_no_such is not installed, though kv-good requires" in caught.value.hint
    assert "pip install --upgrade kv-good" in caught.value.hint


def test_files_that_are_gone(site: Site, registry: Registry):
    site.distribution("kv-gone", "1", backends={"gone": "kv_gone.backend"})
    with pytest.raises(BackendLoadError, match="Files of kv-gone are missing from this environment: reinstall kv-gone"):
        registry.load_backend("gone")


def test_an_entry_point_to_an_attribute_that_is_gone(site: Site, registry: Registry):
    module = site.backend("broken", attribute=":nothing.here")
    with pytest.raises(BackendLoadError) as caught:
        registry.load_backend("broken")
    assert f"'broken' of kv-good points to {module}:nothing.here, which doesn't exist" in caught.value.hint


def test_a_keyboard_interrupt_is_not_swallowed(site: Site, registry: Registry):
    site.backend("broken", before="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        registry.load_backend("broken")


def test_a_failed_load_can_be_retried(site: Site, registry: Registry):
    change = """
        import os
        def preflight():
            if "KV_TEST_DEVICE" not in os.environ:
                raise OSError("no device")
        RECORD["preflight"] = preflight
    """
    site.backend("good", change=change)
    for _ in range(2):
        with pytest.raises(BackendLoadError, match=r"preflight\(\) raised OSError: no device"):
            registry.load_backend("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KV_TEST_DEVICE", "1")
        assert registry.load_backend("good").info.name == "good"


def test_a_module_that_failed_to_import_can_be_mended_and_retried(site: Site, registry: Registry):
    name = site.backend("good", before="raise OSError('not yet')")
    with pytest.raises(BackendLoadError, match="not yet"):
        registry.load_backend("good")
    assert name not in sys.modules
    site.module(backend_text("good") + "\n# longer than before, so that no stale bytecode is taken\n", name)
    assert registry.load_backend("good").info.name == "good"


def test_two_distributions_with_one_name_are_both_named_and_neither_is_loaded(site: Site, registry: Registry):
    first = site.backend("twin", distribution="kv-castor", version="1")
    second = site.backend("twin", distribution="kv-pollux", version="2")
    entry = listed(registry, "twin")
    assert sorted(entry.distributions) == ["kv-castor", "kv-pollux"]
    assert sorted(entry.versions) == ["1", "2"]
    assert set(entry.value.split(", ")) == {first, second}
    with pytest.raises(IncompatibleBackend) as caught:
        registry.load_backend("twin")
    message = str(caught.value)
    assert f"kv-castor 1 ({first})" in message
    assert f"kv-pollux 2 ({second})" in message
    assert "Uninstall all but one of" in caught.value.hint
    assert sorted(caught.value.distributions) == ["kv-castor 1", "kv-pollux 2"]
    assert not {first, second} & set(sys.modules)


def test_one_distribution_with_two_entries_of_one_name(site: Site, registry: Registry):
    site.distribution("kv-twice", "1", raw_entry_points="[kv_core.backends]\ntwin = kv_a\ntwin = kv_b\n")
    with pytest.raises(IncompatibleBackend, match=r"kv-twice 1 \(kv_a\) and kv-twice 1 \(kv_b\)"):
        registry.load_backend("twin")


def test_unreadable_metadata_hides_only_itself(site: Site, registry: Registry, caplog: pytest.LogCaptureFixture):
    site.backend("good")
    site.distribution("kv-garbage", "1", raw_entry_points="[kv_core.backends]\nno equals sign\n")
    with caplog.at_level(logging.WARNING, logger="kv_core"):
        assert listed(registry, "good").distributions == ("kv-good",)
    assert registry.load_backend("good").info.name == "good"
    assert "kv_garbage-1.dist-info" in caplog.text


def test_a_half_removed_distribution_is_told_by_its_place(site: Site, registry: Registry):
    site.backend("good", distribution="kv-half")
    (site.path / "kv_half-1.2.dist-info" / "METADATA").unlink()
    (place,) = listed(registry, "good").distributions
    assert "kv_half-1.2.dist-info" in place


@pytest.mark.parametrize("text", ["", "0", "no"])
def test_a_broken_observer_plugin_is_recorded_logged_once_and_stops_nothing(
    text: str, site: Site, caplog: pytest.LogCaptureFixture
):
    registry = Registry({"KV_CORE_STRICT_PLUGINS": text})
    site.plugin("exits", "raise SystemExit(1)", distribution="kv-exits")
    site.plugin("fine", "from kv_core import hookimpl\n@hookimpl\ndef kv_room_event(event): ...")
    for _ in range(2):
        assert [name for name, _ in registry.load_plugins().list_name_plugin()] == ["fine"]
    (error,) = registry.broken_plugins.values()
    assert "plugin 'exits' of kv-exits 0.3" in str(error)
    assert "raised SystemExit: 1" in str(error)
    assert caplog.text.count("observer plugin left out") == 1


def test_two_observer_plugins_with_one_name_are_both_left_out(site: Site, registry: Registry):
    site.plugin("watch", "raise SystemExit(1)", distribution="kv-a")
    site.plugin("watch", "raise SystemExit(1)", distribution="kv-b")
    assert registry.load_plugins().list_name_plugin() == []
    (error,) = registry.broken_plugins.values()
    assert sorted(error.distributions) == ["kv-a 0.3", "kv-b 0.3"]


def test_disabled_observer_plugins_are_not_imported(site: Site):
    module = site.plugin("watch", "raise SystemExit(1)")
    registry = Registry({"KV_CORE_DISABLED_PLUGINS": "watch", "KV_CORE_STRICT_PLUGINS": "1"})
    assert registry.load_plugins().hooks("kv_room_event") == []
    assert registry.broken_plugins == {}
    assert module not in sys.modules


def test_errors_survive_copying(site: Site, registry: Registry, tmp_path: Path):
    """Copied in the way in which pickle does it."""
    site.plugin("watch", "raise SystemExit(1)")
    registry.load_plugins()
    (error,) = registry.broken_plugins.values()
    again = copy.copy(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert (again.plugin, again.reason, again.hint, again.distributions) == (
        error.plugin, error.reason, error.hint, error.distributions,
    )  # fmt: skip
