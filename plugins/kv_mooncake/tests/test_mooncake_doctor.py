"""What kv-mooncake tells `kv-core doctor`. Needs no engine."""

from __future__ import annotations

import pytest

import kv_mooncake
from kv_mooncake import doctor, options
from kv_mooncake.engine import Wheel


@pytest.fixture(autouse=True)
def _bare(monkeypatch):
    for name in ("MC_FORCE_TCP", "MC_LOG_DIR", "MC_TCP_PROTO"):
        monkeypatch.delenv(name, raising=False)


def found(check) -> dict[str, str]:
    return {finding.id: finding.message for finding in check()}


def test_the_hook_brings_the_checks():
    assert {check.id for check in kv_mooncake.kv_doctor_checks()} == {"mooncake.wheels", "mooncake.settings"}


def test_wheels_that_exclude_each_other(monkeypatch, tmp_path):
    cpu, cuda = Wheel("mooncake-transfer-engine-non-cuda", "0.3.13"), Wheel("mooncake-transfer-engine", "0.3.13")
    monkeypatch.setattr(doctor, "CUDA", (tmp_path / "nvidiactl",))
    for wheels, ids in (
        ([], []),
        ([cpu], []),
        ([cuda], ["mooncake.cuda-wheel"]),
        ([cpu, cuda], ["mooncake.wheels", "mooncake.cuda-wheel"]),
    ):
        monkeypatch.setattr(doctor, "installed_wheels", lambda wheels=wheels: wheels)
        assert list(found(doctor.wheels)) == ids, wheels
    (tmp_path / "nvidiactl").touch()
    assert list(found(doctor.wheels)) == ["mooncake.wheels"]


def test_settings(monkeypatch, tmp_path):
    monkeypatch.setattr(options, "DEVICES", tmp_path)
    assert found(doctor.settings)["mooncake.fabric"].startswith("With its default options the engine uses tcp (no RDMA")
    (tmp_path / "mlx5_0").mkdir()
    assert "uses rdma mlx5_0" in found(doctor.settings)["mooncake.fabric"]
    monkeypatch.setenv("MC_FORCE_TCP", "1")
    assert "mlx5_0" in found(doctor.settings)["mooncake.forced-tcp"]
    monkeypatch.setenv("MC_TCP_PROTO", "1")
    assert "MC_TCP_PROTO" in found(doctor.settings)["mooncake.setting"]
    monkeypatch.setenv("MC_LOG_DIR", "/tmp")
    assert "mooncake.log-dir" in found(doctor.settings)
