"""What the conformance suite is told of this backend is so."""

from __future__ import annotations

import importlib
import sys

from kv_conformance import Fault, Setting
from kv_core import Role
from kv_mori import conformance
from kv_mori.conformance import MoriHarness
from plugins.kv_mori.tests.conftest import STAND_IN


def test_the_stand_in_is_taken_for_what_it_is():
    harness = MoriHarness()
    assert harness.stand_in == "the stand-in of kv-mori's tests, over TCP"
    assert harness.setting(Role.DECODE, Fault.HOLD_DATA) == Setting()
    assert "mori" not in sys.modules, "found, and not imported"


def test_without_it_there_is_none_and_no_bytes_can_be_held_back(monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != STAND_IN])
    importlib.invalidate_caches()
    harness = MoriHarness()
    assert harness.stand_in == ""
    assert harness.setting(Role.DECODE, Fault.HOLD_DATA) is None
    assert harness.setting(Role.DECODE) == Setting()


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(conformance, "DRIVER", tmp_path / "kfd")
    monkeypatch.setattr(conformance, "DEVICES", tmp_path / "infiniband")
    monkeypatch.setattr(conformance, "_installed", lambda: False)
    missing = MoriHarness().prerequisites()
    assert [word for word in ("amd-mori", "RDMA", "AMD GPU") if any(word in text for text in missing)] == [
        "amd-mori", "RDMA", "AMD GPU",
    ]  # fmt: skip
    for name, state in (("mlx5_0", "1: DOWN\n"), ("mlx5_1", "4: ACTIVE\n")):
        port = tmp_path / "infiniband" / name / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(state)
    (tmp_path / "kfd").touch()
    monkeypatch.setattr(conformance, "_installed", lambda: True)
    assert not MoriHarness().prerequisites()
