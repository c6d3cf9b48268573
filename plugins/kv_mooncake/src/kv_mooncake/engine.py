"""The native engine: which wheel is there, what keeps it from loading, and loading it with its log quiet.

Nothing is imported from ``mooncake`` before ``preflight`` or ``open_engine`` is called.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from kv_core import TransportError
from kv_mooncake.codes import meaning

EXTRAS = {
    "mooncake-transfer-engine": "cuda12",
    "mooncake-transfer-engine-cuda13": "cuda13",
    "mooncake-transfer-engine-non-cuda": "cpu",
}
"""The engine's wheels, and the extra of kv-mooncake that brings each. All of them install the package ``mooncake``."""
CUDA_WHEELS = frozenset({"mooncake-transfer-engine", "mooncake-transfer-engine-cuda13"})

CUDA = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version"), Path("/dev/dxg"))
"""Any of these is there where a CUDA device may be: the driver's, its kernel module's, and WSL's."""

_CHOICE = "kv-mooncake[cuda12], kv-mooncake[cuda13] or, without CUDA, kv-mooncake[cpu]"
_CUDA_LIBRARY = re.compile(r"libcuda(?:rt)?\.so")
_QUIET = 3  # glog's FATAL: everything that it reports arrives as a return code too
_LEVEL_SYMBOL = "_ZN3fLI17FLAGS_minloglevelE"


class Wheel(NamedTuple):
    """An installed distribution of the engine."""

    name: str
    version: str


# mooncake.engine.TransferEngine, which has no types. Used of it, all by position; a code of 0 is good, an id of 0 means that
# nothing was posted, `copies` is (session, addresses here, addresses there, lengths) with lists of int:
#   initialize(host, "P2PHANDSHAKE", protocol, devices) -> code             get_rpc_port() -> port, its name for peers
#   register_memory(address, nbytes, location) -> code                      unregister_memory(address) -> code
#   batch_transfer_async_write(*copies), ..._async_read(*copies) -> id      batch_transfer_sync_write, ..._sync_read(*copies) -> code
#   get_batch_transfer_status([ids]) -> code: waits in a native busy loop, frees the ids
#   transfer_submit_write(session, address, address, length) -> id, of one copy
#   transfer_check_status(id) -> 1 done, -1 failed (both free it), 0 pending: does not wait; an id of one copy alone
Engine: TypeAlias = Any


def installed_wheels() -> list[Wheel]:
    """The engine's distributions in this environment, from metadata alone."""
    found = []
    for name in EXTRAS:
        with suppress(PackageNotFoundError):  # which says that it is not there
            found.append(Wheel(name, version(name)))
    return found


def may_have_cuda() -> bool:
    """Whether the installed wheel moves CUDA memory, and this host may have some. Looks at files and loads nothing."""
    return any(wheel.name in CUDA_WHEELS for wheel in installed_wheels()) and any(path.exists() for path in CUDA)


def preflight() -> None:
    """Import the engine, or raise an ``ImportError`` with the real cause and the mend."""
    _engine_class()


def open_engine(host: str, protocol: str, devices: str, extra_environment: Mapping[str, str]) -> Engine:
    """A running engine that peers reach at ``host``. ``extra_environment``: what it shall read while it is made.

    Raises ``TransportError`` if it can't start, and ``ImportError`` if it can't be loaded.
    """
    found = _engine_class()
    with environment(extra_environment):
        engine = found()
        code = engine.initialize(host, "P2PHANDSHAKE", protocol, devices)
    if code:
        raise TransportError(
            f"the Mooncake engine could not start for host {host!r}, protocol {protocol} {devices}: {meaning(code)}. "
            "It needs two free ports (MC_MIN_RPC_PORT to MC_MAX_RPC_PORT, 15000 to 17000 by default); "
            "MC_LOG_LEVEL=INFO shows what it does",
            quiescent=True,
        )
    return engine


@contextmanager
def environment(extra: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for as long as the engine reads them. What the user has set stays as it is."""
    mine = {name: value for name, value in extra.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


def _engine_class() -> Callable[[], Engine]:
    wheels = installed_wheels()
    if len(wheels) > 1:
        names = " ".join(wheel.name for wheel in wheels)
        raise ImportError(
            f"{len(wheels)} wheels of the Mooncake engine are installed, which overwrite each other's files: "
            f"{', '.join(f'{wheel.name} {wheel.version}' for wheel in wheels)}. "
            f"pip uninstall -y {names}, then install one of {_CHOICE}"
        )
    if os.environ.get("MC_LOG_DIR"):
        raise ImportError(
            "MC_LOG_DIR is set, and the Mooncake engine ends the whole process at import with it "
            "('You called InitGoogleLogging() twice!'). Unset MC_LOG_DIR"
        )
    try:
        if importlib.util.find_spec("mooncake") is None:
            raise ModuleNotFoundError(_absent(wheels))
        with environment({"MC_LOG_LEVEL": "ERROR"}):
            module = importlib.import_module("mooncake.engine")
    except ModuleNotFoundError as error:
        if error.name in {"mooncake", "mooncake.engine"}:
            raise ImportError(_absent(wheels)) from error
        raise
    except ImportError as error:
        if _CUDA_LIBRARY.search(str(error)) and any(wheel.name in CUDA_WHEELS for wheel in wheels):
            raise ImportError(_no_cuda(wheels[0], error)) from error
        raise
    if "MC_LOG_LEVEL" not in os.environ:
        _quieten()
    found: Callable[[], Engine] = module.TransferEngine
    return found


def _absent(wheels: list[Wheel]) -> str:
    if wheels:
        wheel = wheels[0]
        return (
            f"the files of {wheel.name} {wheel.version} are gone (uninstalling another wheel of the engine removes them): "
            f"pip install --force-reinstall --no-deps {wheel.name}"
        )
    return f"no Mooncake engine is installed. Install it by extra, the one that fits the machine: {_CHOICE}"


def _no_cuda(wheel: Wheel, error: ImportError) -> str:
    return (
        f"{error}. {wheel.name} {wheel.version} is built for {EXTRAS[wheel.name].replace('cuda', 'CUDA ')}, whose driver "
        f"or runtime this machine lacks: without a GPU, pip uninstall -y {wheel.name} and install kv-mooncake[cpu]; "
        "with one, install the driver, or the flavour that fits the CUDA runtime"
    )


def _quieten() -> None:
    """Set the level of the engine's own copy of glog; its environment variables have no effect on it."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        path = line.partition("/")[1] + line.partition("/")[2]
        if "libglog" in path:
            # A build that links glog in another way keeps its log.
            with suppress(OSError, ValueError):
                ctypes.c_int.in_dll(ctypes.CDLL(path), _LEVEL_SYMBOL).value = _QUIET
            return
