"""What holds for every test of the workspace: those marked ``gpu`` run only where there is a CUDA device."""

from __future__ import annotations

import ctypes

import pytest


def why_no_cuda() -> str:
    """Why no CUDA device can be used here; empty if one can."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no NVIDIA driver here: {error}"
    status = driver.cuInit(0)
    count = ctypes.c_int(0)
    if status == 0:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        return f"the NVIDIA driver answers with error {status}"
    return "" if count.value > 0 else "the NVIDIA driver finds no device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu``, with the reason, where there is no device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and (reason := why_no_cuda()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))
