"""Finding MORI, and opening one of its engines. ``mori.io`` is imported here, at need, and nowhere else.

``mori.io`` is MORI's documented surface and all of it stands in Python sources, which the tests compare with what is
used here; its only drawback is that it imports torch, which every engine on ROCm has. ``mori.cpp`` would do without, but
its methods exist in compiled code only. What MORI does on a wrong address to bind, and on memory that the device refuses,
is to end the process: so what can be checked is checked before.
"""

from __future__ import annotations

import importlib
import platform
import socket
import sys
from pathlib import Path
from typing import Any

from kv_core import TransportError
from kv_core.contract.transport import TransportContext
from kv_mori.options import MoriOptions

NAMES = (
    "BackendType", "EngineDesc", "IOEngine", "IOEngineConfig", "MemoryDesc", "MemoryLocationType", "PollCqMode",
    "RdmaBackendConfig", "XgmiBackendConfig", "set_log_level",
)  # fmt: skip
"""What is taken from ``mori.io``."""
DRIVER = Path("/dev/kfd")
"""Is there where an AMD GPU may be."""
MEND = (
    "MORI runs on ROCm machines only: pip install 'kv-mori[mori]' (amd-mori has one wheel, for Python 3.12, glibc 2.39, "
    "x86-64 and ROCm 7, as on Ubuntu 24.04)"
)


def has_gpu() -> bool:
    """Whether there is an AMD GPU with its driver. Looks at one file; loads nothing."""
    return DRIVER.exists()


def load() -> Any:
    """The module ``mori.io``. Raises ``ImportError`` with the cause and the mend; the original error is its cause."""
    try:
        io = importlib.import_module("mori.io")
    except ModuleNotFoundError as error:
        raise ImportError(_missing(error.name or ""), name=error.name) from error
    except Exception as error:  # a native library's loader raises what it likes
        raise ImportError(f"amd-mori is installed but does not load: {error}. {MEND}; this is {_here()}") from error
    lacking = [name for name in NAMES if not hasattr(io, name)]
    if lacking:
        raise ImportError(
            f"{getattr(io, '__file__', 'mori.io')} has no {', '.join(lacking)}: it is not the mori.io of amd-mori, or of a "
            "version that kv-mori does not know (it was written for 1.2.4)"
        )
    return io


def preflight() -> None:
    """Called when the backend is loaded: see ``load``."""
    load()


def _missing(module: str) -> str:
    if module == "torch":
        return "mori.io imports torch, which is not installed: install PyTorch's ROCm build beside amd-mori"
    if module == "mori":
        return f"the engine is not installed (no module mori). {MEND}; this is {_here()}"
    if module.startswith("mori."):
        return f"the installed module mori has no {module}: it is another package than amd-mori. {MEND}"
    return f"amd-mori is installed, but imports {module}, which is not"


def _here() -> str:
    return f"Python {sys.version_info[0]}.{sys.version_info[1]}, {' '.join(platform.libc_ver())}, {platform.machine()}"


def open_engine(io: Any, context: TransportContext, options: MoriOptions) -> Any:
    """An ``IOEngine`` with the backends asked for, its control port bound. Raises ``TransportError``."""
    host = _control_address(options.control_host or context.advertised_host)
    io.set_log_level(options.log_level)
    # The key must be new with each life of a process: MORI keeps queue pairs and keys of remote memory by it for ever.
    engine = io.IOEngine(context.instance_id, io.IOEngineConfig(host=host, port=0))
    for fabric in options.fabric.split("+"):
        try:
            if fabric == "rdma":
                engine.create_backend(io.BackendType.RDMA, _rdma_config(io, options))
            else:
                config = io.XgmiBackendConfig(num_streams=options.num_streams, num_events=options.num_events)
                engine.create_backend(io.BackendType.XGMI, config)
        except Exception as error:
            raise TransportError(f"MORI can't use {fabric}: {error}. {_MENDS[fabric]}", quiescent=True) from error
    return engine


_MENDS = {
    "rdma": (
        "See that `ibv_devinfo` shows a port in state PORT_ACTIVE (in a container: that it has /dev/infiniband and "
        "libibverbs), or, between GPUs of one node, choose the option fabric='xgmi'"
    ),
    "xgmi": "See that `rocminfo` shows the GPUs, and that they can reach each other",
}


def _rdma_config(io: Any, options: MoriOptions) -> Any:
    return io.RdmaBackendConfig(
        qp_per_transfer=options.qp_per_transfer,
        post_batch_size=options.post_batch_size,
        num_worker_threads=options.num_worker_threads,
        poll_cq_mode=io.PollCqMode.POLLING if options.poll_cq_mode == "polling" else io.PollCqMode.EVENT,
        enable_notification=False,
        enable_transfer_chunking=options.enable_transfer_chunking,
        chunk_bytes=options.chunk_bytes,
        max_chunks_per_transfer=options.max_chunks_per_transfer,
        num_nics_per_transfer=options.num_nics_per_transfer,
    )


def _control_address(host: str) -> str:
    """An IPv4 address of this machine that peers can reach. MORI takes no names, and exits if it can't bind."""
    mend = (
        "set TransferConfig.advertised_host, or the option control_host, to an IPv4 address of this machine: MORI binds "
        "the address that its peers are told"
    )
    try:
        address = str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
            trial.bind((address, 0))
    except (OSError, UnicodeError) as error:  # the latter: no host name at all
        raise TransportError(
            f"MORI can't serve its control port at {host!r}: {error}; {mend}", quiescent=True
        ) from error
    if address == "0.0.0.0":  # noqa: S104  (compared, not bound)
        raise TransportError(f"peers can't connect to {host!r}; {mend}", quiescent=True)
    return address
