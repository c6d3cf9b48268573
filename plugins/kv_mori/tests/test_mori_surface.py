"""Every name and signature that kv-mori uses is in the published wheel, and the stand-in has the same ones."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path

import pytest

import kv_mori
from kv_core import Role
from kv_mori.engine import NAMES
from kv_mori.transfer import SENTENCES
from plugins.kv_mori.tests import mori_surface
from plugins.kv_mori.tests.support_mori import End

WHEEL = json.loads(mori_surface.EXTRACT.read_text())
STAND_IN = Path(__file__).parent / "stand_in" / "mori"
SOURCES = {path.name: ast.parse(path.read_text()) for path in Path(kv_mori.__file__).parent.glob("*.py")}

# Expressions of kv-mori's sources behind which there is an object of MORI's.
RECEIVERS = {
    "io": "io", "self._io": "io",
    "engine": "IOEngine", "self._engine": "IOEngine", "session": "IOEngineSession",
    "status": "TransferStatus", "pending[-1]": "TransferStatus", "failed[-1]": "TransferStatus",
    "failed[-1].Code()": "StatusCode",
    "there": "EngineDesc", "known.engine": "EngineDesc", "self._engine.get_engine_desc()": "EngineDesc",
    "self._io.EngineDesc": "EngineDesc", "self._io.MemoryDesc": "MemoryDesc", "desc": "MemoryDesc",
    "io.BackendType": "BackendType", "io.PollCqMode": "PollCqMode", "places": "MemoryLocationType",
}  # fmt: skip


def uses():
    """(file, class, name, call or None) of everything taken from an object of MORI's."""
    for file, tree in SOURCES.items():
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in RECEIVERS:
                yield file, RECEIVERS[ast.unparse(node.value)], node.attr, calls.get(id(node))


def parameters(cls, method):
    text = WHEEL["methods"][cls][method]
    function = ast.parse(f"def f({text}): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    return function.args


def test_the_extract_is_what_is_in_the_published_wheel():
    try:
        path = mori_surface.wheel(WHEEL["version"])
    except mori_surface.Untestable as error:
        pytest.fail(str(error))
    assert mori_surface.extract(path) == WHEEL


def test_everything_that_kv_mori_takes_from_mori_is_there():
    seen: dict[str, set[str]] = {}
    for file, cls, name, _ in uses():
        where = f"{file} uses {cls}.{name}"
        seen.setdefault(cls, set()).add(name)
        if cls == "io":
            assert name in WHEEL["exports"], where
        elif cls in WHEEL["methods"]:
            assert name in WHEEL["methods"][cls], where
        elif cls in WHEEL["enums"]:
            assert name in WHEEL["enums"][cls] or name == "name", where  # every pybind11 enumeration has ``name``
        elif cls == "TransferStatus":
            assert name in WHEEL["status_methods"], where
            assert WHEEL["strings"][name], where
        else:
            assert WHEEL["strings"][name], where
    assert seen.pop("io") <= set(NAMES) <= set(WHEEL["exports"])
    assert seen == {
        "IOEngine": {
            "batch_write", "create_backend", "create_session", "deregister_memory", "deregister_remote_engine",
            "get_engine_desc", "register_memory", "register_remote_engine", "wait_all",
        },
        "IOEngineSession": {"alive"},
        "TransferStatus": {"Code", "InProgress", "Message", "Succeeded"},
        "StatusCode": {"name"},
        "EngineDesc": {"key", "pack", "unpack"},
        "MemoryDesc": {"pack", "size", "unpack"},
        "BackendType": {"RDMA", "XGMI"},
        "PollCqMode": {"EVENT", "POLLING"},
        "MemoryLocationType": {"CPU", "GPU"},
    }  # fmt: skip


def test_every_call_fits_the_signature_in_the_wheel():
    count = 0
    for file, receiver, used, call in uses():
        cls, name = ("IOEngine", "__init__") if (receiver, used) == ("io", "IOEngine") else (receiver, used)
        where = f"{file} calls {cls}.{name}"
        if call is None or cls not in WHEEL["methods"]:
            continue
        count += 1
        arguments = parameters(cls, name)
        if arguments.vararg is not None:  # batch_write(*args): its parameters are those of what it passes them on to
            arguments = parameters(cls, "_batch_single_side_transfer")
            given = len(call.args) + 2  # self, func
        else:
            given = len(call.args) + 1
        if not any(isinstance(argument, ast.Starred) for argument in call.args):
            assert len(arguments.args) - len(arguments.defaults) <= given <= len(arguments.args), where
        assert {word.arg for word in call.keywords} <= {argument.arg for argument in arguments.args}, where
    assert count >= 10


@pytest.mark.parametrize("name", ["RdmaBackendConfig", "XgmiBackendConfig", "IOEngineConfig"])
def test_every_setting_is_one_of_the_wheel_s(name):
    allowed = WHEEL["engine_config"] if name == "IOEngineConfig" else WHEEL["settings"][name]
    calls = [call for _, _, used, call in uses() if used == name and call is not None]
    assert calls
    for call in calls:
        assert not call.args
        assert {word.arg for word in call.keywords} <= set(allowed)
        assert all(WHEEL["strings"][word.arg] for word in call.keywords)


def test_the_stand_in_s_python_layer_has_the_wheel_s_signatures_and_passes_on_the_same():
    text = (STAND_IN / "io" / "engine.py").read_text()
    for cls, methods in mori_surface.methods(text).items():
        for name, arguments in methods.items():
            assert arguments == WHEEL["methods"][cls][name], f"{cls}.{name}"
    # register_memory wraps the address in a capsule first, under another name.
    calls = {name: given for name, given in mori_surface.calls_of(text).items() if name != "_engine.RegisterMemory"}
    assert {name: WHEEL["native_calls"].get(name) for name in calls} == calls
    assert "IOEngine._batch_single_side_transfer" in calls


def test_the_stand_in_s_compiled_layer_has_the_wheel_s_names():
    import mori.cpp
    import mori.io

    assert set(mori.io.__all__) <= set(WHEEL["exports"])
    for name in ("BackendType", "MemoryLocationType", "StatusCode", "PollCqMode"):
        members = {member.name: member.value for member in getattr(mori.cpp, name)}
        assert members == {key: value for key, value in WHEEL["enums"][name].items() if key != "ERR_BEGIN"}
    for name in ("RdmaBackendConfig", "XgmiBackendConfig"):
        assert list(inspect.signature(getattr(mori.cpp, name)).parameters) == WHEEL["settings"][name]
    for name, call in WHEEL["native_calls"].items():
        owner, _, method = name.partition(".")
        cls = {"_engine": mori.cpp.IOEngine, "_sess": mori.cpp.IOEngineSession}.get(owner)
        if cls is not None and hasattr(cls, method) and call:
            taken = list(inspect.signature(getattr(cls, method)).parameters)[1:]
            assert len(taken) == len(call.split(", ")), name
    taken = list(inspect.signature(mori.cpp.IOEngine.BatchWrite).parameters)[1:]
    assert len(taken) == len(WHEEL["native_calls"]["IOEngine._batch_single_side_transfer"].split(", "))


def test_every_code_has_its_sentence():
    final = {name for name, value in WHEEL["enums"]["StatusCode"].items() if value not in (0, 2)} - {"ERR_BEGIN"}
    assert set(SENTENCES) == final


def test_descriptors_are_packed_as_the_peer_s_are_checked():
    assert WHEEL["packed"]["EngineDesc"] == ["key", "nodeId", "hostname", "host", "port", "pid"]
    assert WHEEL["packed"]["MemoryDesc"][:7] == ["engineKey", "id", "deviceId", "deviceBusId", "data", "size", "loc"]
    with End(Role.DECODE) as end:
        desc = end.transport._memory[end.layout.regions()[0]]
        assert len(desc.fields) == len(WHEEL["packed"]["MemoryDesc"])
