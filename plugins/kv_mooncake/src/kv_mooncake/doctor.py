"""What only this plugin knows of a machine: wheels that exclude each other, and what MC_... settings do to the engine."""

from __future__ import annotations

import os
from collections.abc import Iterator

from kv_core import InvalidConfig
from kv_core.contract.doctor import ok, problem, warning
from kv_core.contract.records import DoctorCheck, DoctorFinding
from kv_mooncake.engine import CUDA, CUDA_WHEELS, EXTRAS, installed_wheels
from kv_mooncake.options import DEVICES, present_devices, read

FABRIC = ok("mooncake.fabric", "With its default options the engine uses {fabric}")
WHEELS = problem(
    "mooncake.wheels",
    "{count} wheels of the engine are installed and overwrite each other's files: {wheels}",
    "pip uninstall -y {names}, then install one: kv-mooncake[cuda12], kv-mooncake[cuda13] or kv-mooncake[cpu]",
)
CUDA_WHEEL = warning(
    "mooncake.cuda-wheel",
    "{wheel} is built for CUDA, and this machine shows no CUDA device: it may not load, and can't use one",
    "Without a GPU: pip uninstall -y {name}, and install kv-mooncake[cpu]; with one, install its driver",
)
FORCED = warning(
    "mooncake.forced-tcp",
    "MC_FORCE_TCP is set, although this host has RDMA devices ({devices})",
    "Unset MC_FORCE_TCP",
)
SETTING = problem("mooncake.setting", "A setting keeps the engine from starting: {message}", "Correct what it names")
LOG_DIR = problem(
    "mooncake.log-dir", "MC_LOG_DIR is set, and the engine ends its whole process at import with it", "Unset MC_LOG_DIR"
)


def checks() -> list[DoctorCheck]:
    """For ``kv_doctor_checks``."""
    return [
        DoctorCheck("mooncake.wheels", "Mooncake's wheels", lambda: list(wheels())),
        DoctorCheck("mooncake.settings", "Mooncake's settings", lambda: list(settings())),
    ]


def wheels() -> Iterator[DoctorFinding]:
    """One of them, and the right one."""
    found = installed_wheels()
    if len(found) > 1:
        shown = ", ".join(f"{wheel.name} {wheel.version}" for wheel in found)
        yield WHEELS.found(count=len(found), wheels=shown, names=" ".join(wheel.name for wheel in found))
    for wheel in found:
        if wheel.name in CUDA_WHEELS and not any(path.exists() for path in CUDA):
            shown = f"{wheel.name} {wheel.version} (the extra {EXTRAS[wheel.name]})"
            yield CUDA_WHEEL.found(wheel=shown, name=wheel.name)


def settings() -> Iterator[DoctorFinding]:
    """What the environment makes of the engine."""
    if os.environ.get("MC_LOG_DIR"):
        yield LOG_DIR.found()
    devices = present_devices()
    if devices and os.environ.get("MC_FORCE_TCP"):
        yield FORCED.found(devices=", ".join(devices))
    try:
        _, fabric = read({})
    except InvalidConfig as error:
        yield SETTING.found(message=error)
    else:
        why = "" if fabric.protocol == "rdma" or devices else f" (no RDMA device in {DEVICES})"
        yield FABRIC.found(fabric=f"{fabric}{why}")
