"""Options, addresses, devices, missing engines: each with its cause and its mend."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kv_core import Capability, InvalidConfig, Role, TransferConfig, TransportError
from kv_core.contract.transport import PeerKey, TransportContext
from kv_mori import MoriTransport, engine, kv_backend
from kv_mori.options import MoriOptions
from plugins.kv_mori.tests.support_mori import End


def open_with(**settings):
    return MoriTransport(TransportContext(Role.PREFILL, "an-instance", TransferConfig(**settings)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"qp": 4}, "no option 'qp'"),
        ({"fabric": "tcp"}, "fabric"),
        ({"qp_per_transfer": 0}, "qp_per_transfer"),
        ({"qp_per_transfer": True}, "qp_per_transfer"),
        ({"num_worker_threads": "4"}, "num_worker_threads"),
        ({"post_batch_size": 0}, "post_batch_size"),
        ({"post_batch_size": -2}, "post_batch_size"),
        ({"chunk_bytes": 100}, "4096"),
        ({"poll_cq_mode": "sleep"}, "poll_cq_mode"),
        ({"enable_transfer_chunking": 1}, "enable_transfer_chunking"),
        ({"control_host": 7}, "control_host"),
        ({"log_level": "loud"}, "log_level"),
        ({"max_outstanding": 2**31}, "max_outstanding"),
        ({"enable_notification": True}, "no option"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(InvalidConfig, match=words):
        open_with(options=options)


def test_options_reach_the_engine(monkeypatch):
    import mori.io

    seen = {}
    whole = mori.io.RdmaBackendConfig

    def config(**given):
        seen.update(given)
        return whole(**given)

    monkeypatch.setattr(mori.io, "RdmaBackendConfig", config)
    open_with(options={"qp_per_transfer": 2, "poll_cq_mode": "event", "post_batch_size": 16}).close()
    assert seen.pop("poll_cq_mode") is mori.io.PollCqMode.EVENT
    defaults = MoriOptions()
    assert seen == {
        "qp_per_transfer": 2,
        "post_batch_size": 16,
        "num_worker_threads": defaults.num_worker_threads,
        "enable_notification": False,
        "enable_transfer_chunking": False,
        "chunk_bytes": 65_536,
        "max_chunks_per_transfer": 64,
        "num_nics_per_transfer": 1,
    }


def test_no_rdma_device_says_what_to_look_at(monkeypatch):
    monkeypatch.setenv("MORI_STAND_IN_DEVICES", "0")
    with pytest.raises(TransportError, match="no active RDMA device") as caught:
        open_with()
    assert "ibv_devinfo" in str(caught.value)


def test_xgmi_needs_no_rdma_device(monkeypatch):
    monkeypatch.setenv("MORI_STAND_IN_DEVICES", "0")
    transport = open_with(options={"fabric": "xgmi"})
    assert transport.describe(PeerKey("any", 1)) == "xgmi"
    transport.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"advertised_host": "203.0.113.7"},
        {"host": "0.0.0.0"},
        {"options": {"control_host": "no such host"}},
        {"advertised_host": "::1"},
    ],
)
def test_addresses_that_would_end_the_process_are_refused(settings):
    with pytest.raises(TransportError, match="control_host"):
        open_with(**settings)


def test_a_host_name_becomes_an_address():
    with End(Role.DECODE, control_host="localhost") as end:
        assert end.transport._engine.get_engine_desc().host == "127.0.0.1"


def test_the_record_names_what_it_can_do(monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "DRIVER", tmp_path / "kfd")
    info = kv_backend().info
    assert {capability.value for capability in info.capabilities} == {"write", "aux", "state"}
    (tmp_path / "kfd").touch()
    assert kv_backend().info.capabilities - info.capabilities == {Capability.ROCM}
    assert info.distribution == "kv-mori"


PACKAGES = {
    "nothing": ({}, ["no module mori", "kv-mori[mori]", "Python 3.12"]),
    "another mori": ({"mori/__init__.py": ""}, ["another package", "kv-mori[mori]"]),
    "no torch": ({"mori/__init__.py": "", "mori/io.py": "import torch_that_is_absent"}, ["torch_that_is_absent"]),
    "no ROCm": (
        {
            "mori/__init__.py": "",
            "mori/io.py": "raise OSError('libamdhip64.so.7: cannot open shared object file: No such file or directory')",
        },
        ["libamdhip64.so.7", "the ROCm runtime", "ROCm machines only"],
    ),
    "an old one": ({"mori/__init__.py": "", "mori/io.py": "class IOEngine: pass"}, ["IOEngineConfig", "1.2.4"]),
}
LOAD = """
import kv_core
try:
    kv_core.load_backend("mori")
except kv_core.BackendLoadError as error:
    print(error)
assert kv_core.load_backend("fake").info.name == "fake"
"""


@pytest.mark.parametrize("case", PACKAGES)
def test_a_missing_piece_is_named_and_other_backends_load(case, tmp_path, monkeypatch):
    files, words = PACKAGES[case]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "mori" in done.stdout
    for word in words:
        assert word in done.stdout
