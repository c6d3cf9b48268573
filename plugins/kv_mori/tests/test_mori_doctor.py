"""What kv-mori tells `kv-core doctor`. Needs no engine."""

from __future__ import annotations

from importlib.machinery import ModuleSpec

import pytest

import kv_mori
from kv_mori import doctor


def found() -> set[str]:
    return {finding.id for check in kv_mori.kv_doctor_checks() for finding in check.run()}


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: ModuleSpec(name, None) if name in names else None)


def test_a_machine_that_lacks_everything(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "has_gpu", lambda: False)
    monkeypatch.setattr(doctor, "RDMA", tmp_path / "none")
    monkeypatch.setattr(doctor, "WHEEL_PYTHON", (2, 7))
    installed(monkeypatch)
    assert found() == {"mori.no-gpu", "mori.no-rdma", "mori.python"}
    installed(monkeypatch, "mori")
    assert found() == {"mori.no-gpu", "mori.no-rdma", "mori.no-torch"}


def test_a_machine_that_fits(monkeypatch, tmp_path):
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr(doctor, "has_gpu", lambda: True)
    monkeypatch.setattr(doctor, "RDMA", tmp_path)
    installed(monkeypatch, "mori", "torch")
    assert found() == {"mori.machine"}
