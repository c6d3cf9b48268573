"""Devices that could carry pages, and what keeps processes from using them."""

from __future__ import annotations

from collections.abc import Iterator

from kv_core.cli.doctor.facts.devices import RDMA, VERBS, Devices
from kv_core.cli.doctor.jobs import MachineSeen
from kv_core.contract.doctor import ok, warning
from kv_core.contract.records import DoctorFinding

NO_RDMA = ok(
    "rdma.none",
    "No RDMA device ({folder} is empty or absent): pages go over TCP, or by copies between processes of one host",
)
PORT = ok("rdma.port", "RDMA device {device} port {number}: {state}, {link}, {gids} addresses in its GID table")
DOWN = warning(
    "rdma.port-down", "RDMA device {device} port {number} is {state}, not ACTIVE",
    "Plug the cable, load the driver, run the subnet manager (InfiniBand), or bring its network interface up (RoCE)",
)  # fmt: skip
NO_GID = warning(
    "rdma.no-gid",
    "RDMA device {device} port {number} has no address: its GID table is all zeros, so every connection over it fails",
    "In a container, use the host's network or give the pod the device's interface; on a host, give the interface an address",
)
PORTLESS = warning(
    "rdma.no-port", "RDMA device {device} shows no port", "Look at `dmesg`: its driver failed, or it is a stub"
)
NO_FILE = warning(
    "rdma.no-device-file",
    "There are RDMA devices, and no {folder}/uverbs* by which a process could reach them",
    "Load the module ib_uverbs; in a container, pass /dev/infiniband in (docker run --device=/dev/infiniband)",
)
NO_LIBRARY = warning(
    "rdma.no-library", "There are RDMA devices, and libibverbs can't be loaded: {error}",
    "Install the package libibverbs1 (rdma-core)",
)  # fmt: skip
NO_PROVIDER = warning(
    "rdma.no-provider",
    "There are RDMA devices, and no user-space driver for any (no file in /etc/libibverbs.d): engines find no device, and use TCP "
    "without a word",
    "Install the package ibverbs-providers (rdma-core)",
)
NO_GPU = ok("gpu.none", "No GPU: only pools in host memory can be moved")
NVIDIA = ok("gpu.cuda", "{count} CUDA devices, driver for CUDA {version}")
NVIDIA_DRIVER = warning(
    "gpu.cuda-driver",
    "There are NVIDIA device files ({files}), and the driver's library is of no use: {error}",
    "In a container, run it with the GPU passed through (--gpus); on a host, see that driver and library have one version",
)
PEER_MEMORY = warning(
    "gpu.no-peer-memory",
    "There are CUDA and RDMA devices, and the module nvidia_peermem is not loaded: memory of the GPU can be registered with the "
    "RDMA device only where kernel and driver both know dma-buf",
    "modprobe nvidia_peermem",
)
ROCM = ok("gpu.rocm", "The ROCm driver is there ({file})")
ROCM_ACCESS = warning(
    "gpu.rocm-no-access", "This user may not use the ROCm driver ({file})",
    "Add the user to the groups render and video, or pass the device into the container",
)  # fmt: skip

VERBS_LIBRARY = "libibverbs.so.1"
LIBRARIES = (VERBS_LIBRARY,)
"""What a child tries to load."""


def devices(found: Devices, machine: MachineSeen) -> Iterator[DoctorFinding]:
    """RDMA, then GPUs."""
    if not found.ports and not found.portless:
        yield NO_RDMA.found(folder=RDMA)
    for name in found.portless:
        yield PORTLESS.found(device=name)
    for port in found.ports:
        told = {"device": port.device, "number": port.number}
        if port.state != "ACTIVE":
            yield DOWN.found(**told, state=port.state)
        elif not port.gids:
            yield NO_GID.found(**told)
        else:
            yield PORT.found(**told, state=port.state, link=port.link or "link layer unknown", gids=port.gids)
    if found.ports or found.portless:
        yield from _ways_to_rdma(found, machine)
    yield from _gpus(found, machine)


def _ways_to_rdma(found: Devices, machine: MachineSeen) -> Iterator[DoctorFinding]:
    if not found.verbs:
        yield NO_FILE.found(folder=VERBS)
    error = machine.libraries.get(VERBS_LIBRARY, "")
    if error:
        yield NO_LIBRARY.found(error=error)
    elif not found.providers:
        yield NO_PROVIDER.found()


def _gpus(found: Devices, machine: MachineSeen) -> Iterator[DoctorFinding]:
    version = machine.cuda_version
    if machine.cuda_devices:
        yield NVIDIA.found(count=machine.cuda_devices, version=f"{version // 1000}.{version % 1000 // 10}")
        if found.rdma and not found.peer_memory:
            yield PEER_MEMORY.found()
    elif found.nvidia:
        yield NVIDIA_DRIVER.found(files=", ".join(found.nvidia), error=machine.cuda_error or "it shows no device")
    if found.rocm:
        yield ROCM.found(file="/dev/kfd") if found.rocm_access else ROCM_ACCESS.found(file="/dev/kfd")
    if not (machine.cuda_devices or found.nvidia or found.rocm):
        yield NO_GPU.found()
