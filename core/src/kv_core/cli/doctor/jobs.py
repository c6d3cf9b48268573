"""What the doctor asks of a child process, and what that tells: JSON lines over its standard input and output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from kv_core.contract.records import DoctorFinding
from kv_core.registry import PluginReport


class _Job(msgspec.Struct, frozen=True, tag=True):
    pass


class LookAtMachine(_Job, frozen=True):
    """Load these shared libraries, and ask the CUDA driver for its version and its devices."""

    libraries: tuple[str, ...]


class LoadBackend(_Job, frozen=True):
    """Load this backend, its engine included, and run its plugin's own checks."""

    name: str


class LoadPlugins(_Job, frozen=True):
    """Load every plugin that is no backend, and run their checks."""


class ManagerSettings(msgspec.Struct, frozen=True):
    """How a child makes its manager."""

    backend: str
    host: str
    advertised_host: str | None
    options: dict[str, object]
    require_transport: tuple[str, ...]
    timeout_s: float
    control_port: int = 0


class Register(_Job, frozen=True):
    """Register memory: a manager for each of these sizes in bytes."""

    manager: ManagerSettings
    sizes: tuple[int, ...]


class LayoutBuffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One buffer of a layout: bytes of an item, the layer, and which part of it ("k", "v")."""

    item_len: int
    layer: int = -1
    part: str = ""


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rank's layout without its addresses, as in ``KVArgs``: what two sides have to have in common."""

    kv: tuple[LayoutBuffer, ...]
    aux: tuple[LayoutBuffer, ...] = ()
    states: dict[str, tuple[LayoutBuffer, ...]] = {}
    page_size: int = 16
    dtype: str = "bfloat16"
    kv_layout: str = "NHD"
    model: str = ""
    revision: str = ""
    num_kv_heads: int = 0
    head_dim: int = 0
    topology: dict[str, int] = {}
    extra: dict[str, str] = {}


class Serve(_Job, frozen=True):
    """Be a prefill instance that waits for doctors: ends when its standard input does."""

    manager: ManagerSettings
    port: int
    layout: Layout
    pages: int


class Fetch(_Job, frozen=True):
    """Meet the prefill instance at ``addr`` and let two of these ``rooms`` arrive, one after the other; none: only meet."""

    manager: ManagerSettings
    addr: str
    layout: Layout
    pages: int
    rooms: tuple[int, ...]


Job: TypeAlias = LookAtMachine | LoadBackend | LoadPlugins | Register | Serve | Fetch


class _News(msgspec.Struct, frozen=True, tag=True):
    pass


class MachineSeen(_News, frozen=True):
    """``libraries``: by name, why it can't be loaded, or "". ``cuda_version``: what the driver runs, such as 12040; 0: no driver."""

    libraries: dict[str, str]
    cuda_version: int = 0
    cuda_devices: int = 0
    cuda_error: str = ""


class PluginLoaded(_News, frozen=True):
    """How loading a backend or a plugin went."""

    report: PluginReport


class Checked(_News, frozen=True):
    """What one of a plugin's own checks found."""

    title: str
    findings: tuple[DoctorFinding, ...]


class Registered(_News, frozen=True):
    """A manager registered so many bytes, in so many seconds, its own start included."""

    nbytes: int
    seconds: float


class Serving(_News, frozen=True):
    """The bootstrap address is served."""

    address: str


class Met(_News, frozen=True):
    """The handshake passed."""

    fabric: str


class Moved(_News, frozen=True):
    """A room arrived, or has been sent. ``wire_s``: time on the wire, None if it is not known; ``wrong``: bytes that differ."""

    nbytes: int
    wrong: int
    wall_s: float
    wire_s: float | None
    fabric: str


class Trouble(_News, frozen=True):
    """A step failed: an exception's type and text, or a room's failure with its stage and code."""

    step: str
    error: str
    message: str
    stage: str = ""
    code: str = ""
    retryable: bool = False


News: TypeAlias = MachineSeen | PluginLoaded | Checked | Registered | Serving | Met | Moved | Trouble
Tell: TypeAlias = Callable[[News], None]
