"""What kv-nixl tells `kv-core doctor`. Needs no engine."""

from __future__ import annotations

import importlib.metadata

import kv_nixl
from kv_core.contract.fabrics import meets
from kv_nixl import doctor, fabric
from kv_nixl.options import NixlOptions


def found(check) -> dict[str, str]:
    return {finding.id: finding.message for finding in check()}


def test_the_hook_brings_the_checks():
    assert {check.id for check in kv_nixl.kv_doctor_checks()} == {"nixl.packages", "nixl.ucx"}


def test_what_ucx_is_confined_to(monkeypatch):
    monkeypatch.setattr(doctor, "rdma_devices", lambda: ["mlx5_0"])
    monkeypatch.delenv("UCX_NET_DEVICES", raising=False)
    for value, finding in (
        ("tcp", "nixl.only-tcp"), ("tcp,self", "nixl.only-tcp"), ("posix,sysv", "nixl.no-failure-detection"),
        ("", "nixl.may-choose"), ("cma,tcp", None), ("rc", None), ("^posix", "nixl.may-choose"),
    ):  # fmt: skip
        monkeypatch.setenv("UCX_TLS", value)
        assert list(found(doctor.settings)) == ([finding] if finding else []), value
    monkeypatch.setenv("UCX_TLS", "rc")
    monkeypatch.setenv("UCX_NET_DEVICES", "mlx5_0:1,nosuchdevice0")
    assert "nosuchdevice0" in found(doctor.settings)["nixl.unknown-device"]


def test_packages_of_one_version(monkeypatch):
    versions = {"nixl": "1.5.1", "nixl-cu12": "1.5.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor, "version", version)
    assert list(found(doctor.packages)) == ["nixl.packages"]
    versions["nixl-cu12"] = "1.10.0"
    (finding,) = doctor.packages()
    assert finding.id == "nixl.mixed-versions"
    assert "nixl==1.10.0" in finding.remedy


def test_what_the_fabric_may_be_is_known_where_ucx_is_left_one(monkeypatch):
    for value, devices, names in (
        ("tcp", [], ("ucx tcp",)), ("rc,cuda_copy", ["mlx5_0"], ("ucx rdma",)), ("rc,cuda", ["mlx5_0"], ("ucx",)), ("cuda_copy", [], ("ucx",)),
        ("rc", ["mlx5_0"], ("ucx rdma",)), ("rc_mlx5,ud,self", ["mlx5_0"], ("ucx rdma",)),
        ("", [], ("ucx cma", "ucx")), ("", ["mlx5_0"], ("ucx",)), ("rc,tcp", ["mlx5_0"], ("ucx",)),
    ):  # fmt: skip
        monkeypatch.setenv("UCX_TLS", value)
        monkeypatch.setattr(fabric, "rdma_devices", lambda devices=devices: devices)
        assert fabric.possible_fabrics(NixlOptions()) == names, value
    assert meets(["rdma"], "ucx rdma")
    assert not any(meets(["rdma"], name) for name in ("ucx tcp", "ucx cma", "ucx"))
    assert fabric.possible_fabrics(NixlOptions(backend="POSIX")) == ("posix",)
