"""What a backend's author may say about the place where the backend is tested; everything has a default that fits a
backend which moves host memory over the loopback interface and needs nothing.

A harness is one of three doors into the suite; the others are the capabilities that the backend declares and the file
of known failures. It is found by entry point::

    [project.entry-points."kv_core.conformance"]
    acme = "kv_acme.conformance:AcmeHarness"

where the name is the backend's and the value a subclass of ``Harness``, called without arguments. It is constructed in
the suite's own process and again in each process that stands for a server (a *node*), so it must not load the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from kv_core import MemoryKind, Role

GROUP = "kv_core.conformance"
"""Entry-point group of harnesses; the entry point's name is the backend's name."""


class Fault(str, Enum):
    """What the suite does to a backend on purpose.

    The first three it does by itself, to the processes: they need nothing from a harness. For the others a harness may
    say under which settings they work.
    """

    KILL = "kill"  # a process is killed (SIGKILL)
    FREEZE = "freeze"  # a process is stopped (SIGSTOP), and perhaps goes on later (SIGCONT)
    RESTART = "restart"  # a killed process is followed by another one at the same address
    HOLD_DATA = "hold_data"  # bytes are held back while messages pass: by stopping the process that receives them
    REGISTRATION = "registration"  # memory can't be registered


@dataclass(frozen=True)
class Setting:
    """Under what a node runs. ``options``: ``TransferConfig.options``. ``environment``: variables that are set in the
    node's process before the backend's engine is loaded. ``refused_region``: for ``Fault.REGISTRATION``, which region of
    three the options make the engine refuse, counted from 0.
    """

    options: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    refused_region: int | None = None


class DeviceMemory(Protocol):
    """A piece of memory that is not the host's. Touched without the backend, by the device's own copies."""

    address: int

    def read(self, offset: int, nbytes: int) -> bytes:
        """Bytes as they are there now, once everything that was begun before is complete."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes there; returns when they are visible to the device."""
        ...


class Harness:
    """The environment of one backend. Override what is different; call no pytest here."""

    patience_s: float = 30.0
    """How long the suite waits for anything that must happen, in seconds. Not a performance requirement: a limit after
    which it is taken that the thing never happens."""

    stand_in: str = ""
    """What takes the engine's place here, if the real one can't run ("a stand-in for ACME over TCP"). Checks that pass
    against a stand-in are reported as not verified: the verdict is ``partial`` at best."""

    def prerequisites(self) -> Sequence[str]:
        """What is missing here that the backend can't do without: a sentence each ("no RDMA device (ibv_devinfo is
        empty)"). If there is any, checks that need the engine are ``untestable``, unless there is a ``stand_in``.
        """
        return ()

    def setting(self, role: Role, fault: Fault | None = None) -> Setting | None:
        """Options and environment of a node with this role, under which ``fault`` can be made; None: it can't be made here,
        and the checks that need it are untestable.

        The default is the same for all: no options, and no change of environment. HOLD_DATA needs a fabric whose receiver
        takes part in each copy (TCP): the suite stops its process, and looks whether that really holds the bytes.
        REGISTRATION without a setting of its own is provoked with memory that no engine can have.
        """
        return Setting()

    def allocate(self, kind: MemoryKind, device_id: int, nbytes: int) -> DeviceMemory | None:
        """Memory of a device, in the calling process; None where there is none. Host memory is the suite's own affair."""
        return None
