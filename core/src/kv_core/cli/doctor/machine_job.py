"""In a child: shared libraries and the CUDA driver, by the dynamic linker alone. No vendor tool, no vendor package."""

from __future__ import annotations

import ctypes

from kv_core.cli.doctor.jobs import LookAtMachine, MachineSeen

CUDA_DRIVER = "libcuda.so.1"


def look_at_machine(job: LookAtMachine) -> MachineSeen:
    """Try to load each library; ask the CUDA driver, if there is one."""
    libraries = {name: _problem(name) for name in job.libraries}
    try:
        driver = ctypes.CDLL(CUDA_DRIVER)
        version, count = ctypes.c_int(0), ctypes.c_int(0)
        driver.cuDriverGetVersion(ctypes.byref(version))
        code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError) as error:
        return MachineSeen(libraries, cuda_error=str(error))
    text = f"the driver answers with error {code} (cuInit, cuDeviceGetCount)" if code else ""
    return MachineSeen(libraries, version.value, count.value, text)


def _problem(name: str) -> str:
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return str(error)
    return ""
