"""What only this plugin knows of a machine: which of NIXL's packages is used, and what UCX_... settings do to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from kv_core.contract.doctor import ok, warning
from kv_core.contract.records import DoctorCheck, DoctorFinding
from kv_nixl.engine import NETWORK, PACKAGES, network_devices, rdma_devices
from kv_nixl.fabric import INSIDE, RDMA
from kv_nixl.options import SLOW_IN_THREADS, NixlOptions

PACKAGE = ok("nixl.packages", "Installed of NIXL: {packages}")
MIXED = warning(
    "nixl.mixed-versions",
    "NIXL's packages have different versions: {packages}; descriptors of one need not be read by another",
    "Install one version of all: pip install --no-deps {same}",
)
ONLY_TCP = warning(
    "nixl.only-tcp",
    "UCX_TLS={value} leaves UCX nothing but TCP{loss}",
    "Unset UCX_TLS, or add what shall be used: cma (copies on one host), rc (RDMA), cuda_copy and cuda_ipc (GPUs)",
)
BLIND = warning(
    "nixl.no-failure-detection",
    "UCX_TLS={value} has no transport that notices a peer's end, and NIXL's UCX backend does not start without one",
    "Add tcp (with cma, say), or an RDMA transport",
)
NO_DEVICE = warning(
    "nixl.unknown-device",
    "UCX_NET_DEVICES names {names}, which this host does not have: UCX leaves it out, and may be left with TCP or with nothing",
    "Correct or unset UCX_NET_DEVICES; there are: {there}",
)
SILENT = ok(
    "nixl.may-choose",
    "UCX chooses by itself among RDMA ({devices}), copies and TCP, and NIXL does not tell which it took: the fabric is called ucx",
    "To be certain, leave it one: UCX_TLS=rc (with cuda_copy for GPUs); then the fabric is called 'ucx rdma', and "
    "require_transport='rdma' holds it",
)


def checks() -> list[DoctorCheck]:
    """For ``kv_doctor_checks``."""
    return [
        DoctorCheck("nixl.packages", "NIXL's packages", lambda: list(packages())),
        DoctorCheck("nixl.ucx", "UCX's settings", lambda: list(settings())),
    ]


def packages() -> Iterator[DoctorFinding]:
    """Which are there, and whether they belong together."""
    found = {}
    for name in PACKAGES:
        distribution = name.replace("_", "-")
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    if not found:
        return  # the preflight says so, and what to install
    shown = ", ".join(f"{name} {number}" for name, number in found.items())
    if len(set(found.values())) > 1:
        newest = max(found.values(), key=lambda number: [int(part) for part in number.split(".") if part.isdigit()])
        yield MIXED.found(packages=shown, same=" ".join(f"{name}=={newest}" for name in found))
    else:
        yield PACKAGE.found(packages=shown)


def settings() -> Iterator[DoctorFinding]:
    """What the environment confines UCX to."""
    value, devices = os.environ.get("UCX_TLS", ""), rdma_devices()
    confined = NixlOptions().transports()
    if confined and confined <= SLOW_IN_THREADS | INSIDE:
        loss = f", although this host has RDMA devices ({', '.join(devices)})" if devices else ""
        yield ONLY_TCP.found(value=value, loss=f"{loss}, and copies between processes are not made")
    elif confined and not confined & (RDMA | {"tcp"}):
        yield BLIND.found(value=value)
    elif not confined and devices:
        yield SILENT.found(devices=", ".join(devices))
    named = {
        each.partition(":")[0].strip() for each in os.environ.get("UCX_NET_DEVICES", "").split(",") if each.strip()
    }
    there = [*devices, *network_devices()]
    absent = sorted(named - set(there) - {"all"})
    if absent:
        yield NO_DEVICE.found(names=", ".join(absent), there=", ".join(there) or f"none ({NETWORK})")
