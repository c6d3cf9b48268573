"""The doctor lets a backend work: what it finds under each fault, made for real. (A backend that does well: ``test_peer``.)"""

from __future__ import annotations

import os
from typing import Any

import pytest

from core.tests.cli.doctor.support import by_id, examine, faults, loaded
from core.tests.registry.support import Site

TRANSPORT_THAT_LEARNS_LATE = """
from kv_core import BackendInfo, BackendRecord, Capability, hookimpl
from kv_fake import FakeTransport

class Late(FakeTransport):
    def fabrics(self):
        return ()

@hookimpl
def kv_backend():
    capabilities = frozenset({Capability.WRITE, Capability.AUX, Capability.STATE})
    return BackendRecord(BackendInfo("late", "kv-late", "1", (1, 0), capabilities), Late)
"""


@pytest.mark.parametrize(
    ("fault", "finding", "words"),
    [
        ({"kind": "corrupt", "nth": 1}, "live.corrupt", "1 of 67108864 bytes"),
        ({"kind": "fail_registration", "nth": 1}, "live.registration", "4096 bytes"),
        ({"kind": "die", "nth": 1}, "live.crashed", "the prefill process was killed by SIGKILL"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_a_backend_that_does_not_work(known, fault: dict[str, Any], finding: str, words: str):
    settings: dict[str, Any] = {"timeout_s": 3.0, "options": faults(**fault)}
    report = examine("transfers", known, **settings)
    found = by_id(report)
    assert finding in found, report.to_json()
    assert words in found[finding]["message"]
    assert report.exit_status == 1
    assert "live.moved" not in found
    assert "doctor.broken" not in found


def test_bytes_that_never_come_are_a_failed_transfer_and_not_a_hanging_doctor(known):
    options = faults(kind="drop", every=1)
    found = by_id(examine("transfers", known, timeout_s=1.0, options=options))
    assert found["live.failed"]["status"] == "problem"
    assert "transferring_timeout_s" in found["live.failed"]["message"]


def test_an_option_that_the_backend_does_not_have(known):
    found = by_id(examine("transfers", known, options={"": {"fautls": []}}))
    assert "fautls" in found["live.not-started"]["message"]


def test_a_fabric_that_the_backend_knows_it_can_not_use(known):
    found = by_id(examine("transfers", known, require_transport=("rdma",)))
    assert "require_transport asks for 'rdma'" in found["fabric.required"]["message"]
    assert "'tcp'" in found["fabric.required"]["message"]


def test_a_fabric_that_turns_out_to_be_another_one_when_the_peers_meet(tmp_path, monkeypatch):
    site = Site(tmp_path)
    site.distribution("kv-late", "1", backends={"late": site.module(TRANSPORT_THAT_LEARNS_LATE)})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    report = examine("transfers", loaded("late"), backend="late", require_transport=("rdma",))
    seen = by_id(report)["fabric.required"]
    assert seen["status"] == "problem"
    assert "in use to this peer is 'tcp'" in seen["message"]
    assert not report.measurements
    site.forget()
