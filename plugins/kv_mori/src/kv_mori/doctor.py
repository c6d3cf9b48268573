"""What only this plugin knows of a machine: the GPU, the RDMA devices and the Python that MORI needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from kv_core.contract.doctor import ok, warning
from kv_core.contract.records import DoctorCheck, DoctorFinding
from kv_mori.engine import DRIVER, has_gpu

RDMA = Path("/sys/class/infiniband")
WHEEL_PYTHON = (3, 12)
"""The only Python for which amd-mori has a wheel."""

FITS = ok("mori.machine", "MORI finds an AMD GPU and RDMA devices ({devices})")
NO_GPU = warning(
    "mori.no-gpu",
    "There is no {driver}: MORI's libraries belong to ROCm, and pools in GPU memory can't be moved",
    "Run it on a machine with an AMD GPU and the amdgpu driver; in a container pass /dev/kfd and /dev/dri in",
)
NO_RDMA = warning(
    "mori.no-rdma",
    "There is no RDMA device ({folder} is empty or absent), and MORI moves pages between machines by RDMA alone",
    "Load the device's driver, pass /dev/infiniband into the container, or choose the option fabric='xgmi' inside of one machine",
)
PYTHON = warning(
    "mori.python",
    "amd-mori has a wheel for Python {wanted} only, and this is Python {here}",
    "Use Python {wanted}, or build MORI from source",
)
NO_TORCH = warning(
    "mori.no-torch", "mori.io imports torch, which is not installed", "Install PyTorch's ROCm build beside amd-mori"
)


def checks() -> list[DoctorCheck]:
    """For ``kv_doctor_checks``."""
    return [DoctorCheck("mori.machine", "What MORI needs", lambda: list(machine()))]


def machine() -> Iterator[DoctorFinding]:
    """Looks at files and at what could be imported; loads nothing."""
    devices = sorted(path.name for path in RDMA.iterdir()) if RDMA.is_dir() else []
    if has_gpu() and devices:
        yield FITS.found(devices=", ".join(devices))
    if not has_gpu():
        yield NO_GPU.found(driver=DRIVER)
    if not devices:
        yield NO_RDMA.found(folder=RDMA)
    if find_spec("mori") is None:
        if sys.version_info[:2] != WHEEL_PYTHON:
            wanted = ".".join(map(str, WHEEL_PYTHON))
            yield PYTHON.found(wanted=wanted, here=".".join(map(str, sys.version_info[:2])))
    elif find_spec("torch") is None:
        yield NO_TORCH.found()
