"""What an agent does to the process that it lives in: quiet, idle, no torch, a clean end; its options; a missing engine."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from kv_core import (
    BackendLoadError,
    Capability,
    InvalidConfig,
    Role,
    load_backend,
    parse_options,
)
from kv_nixl import engine, kv_backend
from kv_nixl.options import POOL_THREADS, NixlOptions
from plugins.kv_nixl.tests.nixl_ends import FABRICS, LIMIT_S, End, states

PRELUDE = """
import sys
from kv_core import Role, TransferState
from plugins.kv_nixl.tests.nixl_ends import End
source, target = End(), End(Role.DECODE, seed=None)
prepared = source.meet(target)
transfer = source.write(prepared, [1, 2], [3, 4])
"""
ENDINGS = {
    "closed": "source.finish(transfer); source.transport.close(); target.transport.close()",
    "forgotten": "source.finish(transfer)",
    "in flight": "",
    "exception": "raise SystemExit(0)",
    "thread": "import threading; threading.Thread(target=source.finish, args=(transfer,)).start()",
}


def run(program: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("NIXL_", "UCX_"))}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=settings | env,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_without_a_crash_and_nothing_is_printed(ending):
    result = run(PRELUDE + ENDINGS[ending], **FABRICS["tcp"])
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_neither_torch_nor_a_log_level_is_needed_and_python_logging_is_left_alone():
    result = run(
        PRELUDE
        + """
import logging
assert source.finish(transfer)[0].state is TransferState.DONE
assert "torch" not in sys.modules
assert logging.raiseExceptions
source.transport.close(), target.transport.close()
"""
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_users_log_level_is_kept():
    result = run(PRELUDE + ENDINGS["closed"] + "; import os; print(os.environ['UCX_LOG_LEVEL'])", UCX_LOG_LEVEL="warn")
    assert (result.returncode, result.stdout) == (0, "warn\n"), result.stderr


def test_an_idle_agent_does_not_spin():
    program = """
import sys, time
from kv_core import Role
from plugins.kv_nixl.tests.nixl_ends import End
with End(Role.PREFILL) as one, End(Role.DECODE) as two:
    one.meet(two)
    before = time.process_time()
    two.transport.wait(1.0)
    two.transport.wake()
    two.transport.wait(10.0)
    one.transport.wait(1.0)
    print(time.process_time() - before)
"""
    result = run(program)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 0.8  # seconds, in more than two: a spinning thread takes one of each


@pytest.mark.parametrize(
    ("blocked", "message"),
    [
        (["nixl", "nixl_cu12", "nixl_cu13", "nixl_rocm"], "pip install --no-deps nixl nixl-cu12 nixl-cu13"),
        (["nixl_cu12", "nixl_cu13", "nixl_rocm"], "pip install --no-deps nixl nixl-cu12 nixl-cu13"),
    ],
)
def test_without_nixl_loading_the_backend_says_what_to_install(blocked, message):
    program = f"""
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import kv_core, kv_nixl.transport
assert any(found.name == "nixl" for found in kv_core.list_backends())
try:
    kv_core.load_backend("nixl")
except kv_core.BackendLoadError as error:
    print(error)
    assert isinstance(error.__cause__, ImportError)
"""
    result = run(program)
    assert result.returncode == 0, result.stderr
    assert message in result.stdout


@pytest.mark.parametrize("package", ["nixl_cu12", "nixl_cu13"])
def test_either_cuda_flavour_does_without_the_other_packages(package):
    hidden = [name for name in ("nixl", "nixl_cu12", "nixl_cu13") if name != package]
    program = f"import sys\nfor name in {hidden!r}: sys.modules[name] = None\n" + PRELUDE
    result = run(program + f"source.finish(transfer); assert {package!r} in sys.modules; " + ENDINGS["closed"])
    assert (result.returncode, result.stderr) == (0, "")


def test_a_library_that_is_missing_is_named_as_it_is(monkeypatch):
    from kv_nixl import engine

    def broken(name):
        raise ImportError("libssl.so.3: cannot open shared object file: No such file or directory")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(ImportError, match=r"libssl\.so\.3") as caught:
        engine.load_engine()
    assert "pip" not in str(caught.value)


def test_what_the_backend_says_of_itself():
    info = load_backend("nixl").info
    assert {Capability.WRITE, Capability.AUX, Capability.STATE, Capability.ENGINE_LATENCY} <= info.capabilities
    assert not {Capability.FENCE, Capability.CANCEL} & info.capabilities  # nothing that NIXL offers proves either


def test_cuda_memory_is_declared_where_a_device_may_be(monkeypatch, tmp_path):
    device = tmp_path / "nvidiactl"
    monkeypatch.setattr(engine, "CUDA", (tmp_path / "none", device))
    assert Capability.CUDA not in kv_backend().info.capabilities
    device.touch()
    assert Capability.CUDA in kv_backend().info.capabilities


@pytest.mark.parametrize(
    "options",
    [
        {"bakcend": "UCX"}, {"backend": ""}, {"backend": 3}, {"params": "x"}, {"devices": 7}, {"devices": [7]},
        {"num_threads": -1}, {"num_threads": "many"}, {"num_threads": True}, {"progress_delay_us": 1.5},
    ],
)  # fmt: skip
def test_options_that_can_not_be(options):
    with pytest.raises(InvalidConfig, match=next(iter(options))):
        parse_options(NixlOptions, options, backend="nixl")


def test_the_number_of_threads_follows_the_fabric(monkeypatch):
    monkeypatch.delenv("UCX_TLS", raising=False)
    auto = NixlOptions()
    assert auto.threads(initiator=True, host="127.0.0.1") == POOL_THREADS
    assert auto.threads(initiator=False, host="127.0.0.1") == 0
    assert auto.threads(initiator=True, host="10.0.0.1") == 0
    assert NixlOptions(num_threads=3).threads(initiator=True, host="10.0.0.1") == 3
    assert NixlOptions(params={"engine_config": "TLS=tcp"}).threads(initiator=True, host="::1") == 0
    assert NixlOptions(backend="LIBFABRIC").threads(initiator=True, host="127.0.0.1") == 0
    for transports, threads in (
        ("tcp", 0),
        ("tcp,self", 0),
        ("cma,tcp", POOL_THREADS),
        ("^ib", POOL_THREADS),
        ("all", 8),
    ):
        monkeypatch.setenv("UCX_TLS", transports)
        assert auto.threads(initiator=True, host="127.0.0.1") == threads, transports


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "NOPE"}, "NIXL knows the backends .*UCX"),
        ({"devices": ["mlx5_77"]}, "network devices: .*lo"),
        ({"devices": "mlx5_77:1"}, "mlx5_77"),
        ({"params": {"ucx_error_handling_mode": "bogus"}}, "bogus"),
        ({"backend": "POSIX", "devices": ["lo"]}, "params only"),
    ],
)
def test_backends_and_devices_that_are_not_there_say_so(options, message):
    with pytest.raises(BackendLoadError, match=message):
        End(options=options)


def test_no_usable_transport_says_so(monkeypatch):
    monkeypatch.setenv("UCX_TLS", "sysv,self")
    with pytest.raises(BackendLoadError, match="UCX_TLS"):
        End()


def test_a_device_can_be_chosen(monkeypatch):
    monkeypatch.setenv("UCX_TLS", "tcp")
    monkeypatch.delenv("UCX_NET_DEVICES", raising=False)
    settings = {"devices": ["lo"]}

    with End(options=settings) as source, End(Role.DECODE, seed=None, options=settings) as target:
        prepared = source.meet(target)
        assert "UCX_NET_DEVICES" not in os.environ
        assert source.transport.describe(prepared.peer) == "ucx tcp"
        assert states(source.finish(source.write(prepared, [0], [0]))) == ["done"]


def test_the_fabric_is_named_only_where_it_is_known(monkeypatch):
    for transports, name in (("", "ucx cma"), ("tcp", "ucx tcp"), ("cma,tcp", "ucx cma"), ("posix,tcp", "ucx")):
        monkeypatch.setenv("UCX_TLS", transports) if transports else monkeypatch.delenv("UCX_TLS", raising=False)
        with End() as source, End(seed=None) as target:
            assert source.transport.describe(source.meet(target).peer) == name, transports
            assert name in source.transport.fabrics(), transports
