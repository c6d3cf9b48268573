"""NIXL itself: found, kept quiet, imported; and one agent of it, with one backend.

The agent is driven through NIXL's bindings, not through its Python classes: those burn a core (they hard-code a
progress thread that never sleeps), and release handles wherever the garbage collector happens to run.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kv_core import BackendLoadError, MemoryKind
from kv_nixl.options import NixlOptions

PACKAGES = ("nixl", "nixl_cu13", "nixl_cu12", "nixl_rocm")
MEND = (
    "Install NIXL: pip install 'kv-nixl[nixl]' (brings torch and CUDA libraries along, several gigabytes), or only what is "
    "needed: pip install --no-deps nixl nixl-cu12 nixl-cu13"
)
QUIET = {"NIXL_LOG_LEVEL": "FATAL", "UCX_LOG_LEVEL": "fatal"}
"""Unless the user says otherwise: what goes wrong is told in the transport's own sentences."""
INFINIBAND = Path("/sys/class/infiniband")
NETWORK = Path("/sys/class/net")
AMAZON = "0x1d0f"
CUDA = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version"), Path("/dev/dxg"))
"""Any of these is there where a CUDA device may be: the driver's, its kernel module's, and WSL's."""

_logger = logging.getLogger("kv_nixl")


def load_engine() -> Any:
    """NIXL's bindings, from the first of its packages that can be imported.

    Raises the real ``ImportError`` of a package that is there but does not load, and one that says what to install if
    there is none.
    """
    _keep_quiet()
    problem: ImportError | None = None
    raising = logging.raiseExceptions
    for package in PACKAGES:
        try:
            with _without_torch():
                importlib.import_module(package)
            bindings = importlib.import_module(f"{package}._bindings")
        except ImportError as error:
            absent = isinstance(error, ModuleNotFoundError) and error.name == package
            problem = problem or (None if absent else error)
        else:
            if problem is not None:
                _logger.warning("using %s, for NIXL's own choice failed: %s", package, problem)
            if "NIXL_LOG_LEVEL" not in os.environ or os.environ["NIXL_LOG_LEVEL"] == QUIET["NIXL_LOG_LEVEL"]:
                logging.getLogger("nixl").setLevel(logging.CRITICAL)  # it may have been imported before us, and loud
            return bindings
        finally:
            logging.raiseExceptions = raising  # NIXL changes it for the whole process
    if problem is not None and ".so" in str(problem):
        raise problem
    raise ImportError(f"{problem or 'NIXL is not installed'}. {MEND}")


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """NIXL looks for torch's CUDA version, and imports all of torch (seconds) where it was built without CUDA."""
    try:
        build = version("torch").partition("+")[2]
    except PackageNotFoundError:
        build = ""
    hide = "torch" not in sys.modules and build.startswith(("cpu", "rocm"))
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]  # the import system's own way to say "not there"
    try:
        yield
    finally:
        if hide:
            del sys.modules["torch"]


def _keep_quiet() -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # UCX's module for Amazon's adapters loads the system's libibverbs and libnl beside the wheel's own copies, where
    # libefa1 is installed; with both in one process the interpreter crashes when it ends (nixl 1.5.1, UCX 1.23).
    if not any(_vendor(device) == AMAZON for device in _devices(INFINIBAND)):
        os.environ.setdefault("UCX_MODULES", "^efa")


def _vendor(device: str) -> str:
    with contextlib.suppress(OSError):  # not every device is on a PCI bus
        return (INFINIBAND / device / "device" / "vendor").read_text(encoding="ascii").strip()
    return ""


def _devices(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def rdma_devices() -> list[str]:
    """Names of this host's RDMA devices."""
    return _devices(INFINIBAND)


def network_devices() -> list[str]:
    """Names of this host's network devices."""
    return _devices(NETWORK)


def may_have_cuda() -> bool:
    """Whether this host may have a CUDA device. Looks at files and loads nothing: it is asked before NIXL is there."""
    return any(path.exists() for path in CUDA)


class Engine:
    """One NIXL agent with one backend. ``errors``: the exceptions that NIXL raises; they have no base of their own.

    Raises ``BackendLoadError`` for a device or backend that there is not.
    """

    def __init__(self, name: str, options: NixlOptions, *, threads: int, progress_delay_us: int) -> None:
        self.lib = load_engine()
        self.errors: tuple[type[Exception], ...] = tuple(
            value for value in vars(self.lib).values() if isinstance(value, type) and issubclass(value, Exception)
        )
        self.segments = {
            MemoryKind.HOST: self.lib.DRAM_SEG,
            MemoryKind.CUDA: self.lib.VRAM_SEG,
            MemoryKind.ROCM: self.lib.VRAM_SEG,
        }
        config = self.lib.nixlAgentConfig()
        config.useProgThread = progress_delay_us > 0
        config.pthrDelay = progress_delay_us
        config.useListenThread = False
        config.syncMode = self.lib.NIXL_THREAD_SYNC_STRICT  # one thread drives it; the default crashes with two
        config.captureTelemetry = True
        params = {name: str(value) for name, value in options.params.items()}
        if threads:
            params.setdefault("num_threads", str(threads))
        with _only_devices(options):
            self.agent = self.lib.nixlAgent(name, config)
            self._create_backend(options.backend, params)

    def _create_backend(self, backend: str, params: Mapping[str, str]) -> None:
        try:
            self.agent.createBackend(backend, params)
        except self.errors as error:
            there = sorted(self.agent.getAvailPlugins())
            settings = {name: value for name, value in os.environ.items() if name.startswith("UCX_")}
            raise BackendLoadError(
                f"NIXL can't create its backend {backend!r} with {dict(params)}: {type(error).__name__} {error}",
                backend="nixl",
                distributions=("kv-nixl",),
                hint=f"NIXL knows the backends {', '.join(there)}; the environment has {settings or 'no UCX_ setting'} (UCX "
                "needs a transport that notices failures: tcp, cma with tcp, or RDMA); set NIXL_LOG_LEVEL=INFO and "
                "UCX_LOG_LEVEL=info to see what they say",
            ) from error


@contextlib.contextmanager
def _only_devices(options: NixlOptions) -> Iterator[None]:
    """Confine UCX to these devices while its context is made. By the environment: NIXL's own parameter takes RDMA only."""
    if not options.device_names:
        yield
        return
    rdma, network = rdma_devices(), network_devices()
    names = []
    for device in options.device_names:
        name = device.partition(":")[0]
        if options.backend != "UCX" or name not in (*rdma, *network):
            raise BackendLoadError(
                f"option devices asks for {device!r}, which backend {options.backend} can't use here",
                backend="nixl",
                distributions=("kv-nixl",),
                hint=f"RDMA devices of this host: {', '.join(rdma) or 'none'}; network devices: {', '.join(network)}; "
                "other backends than UCX take devices by option params only",
            )
        names.append(f"{device}:1" if name in rdma and ":" not in device else device)
    before = os.environ.get("UCX_NET_DEVICES")
    os.environ["UCX_NET_DEVICES"] = ",".join(names)
    try:
        yield
    finally:
        del os.environ["UCX_NET_DEVICES"]
        if before is not None:
            os.environ["UCX_NET_DEVICES"] = before
