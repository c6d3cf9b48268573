"""RDMA devices from sysfs, GPUs from their device files and their drivers' files. Nothing is loaded here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

RDMA = Path("/sys/class/infiniband")
VERBS = Path("/dev/infiniband")
PROVIDERS = (Path("/etc/libibverbs.d"), Path("/usr/local/etc/libibverbs.d"))
MODULES = Path("/proc/modules")
KFD = Path("/dev/kfd")
DEV = Path("/dev")


@dataclass(frozen=True)
class RdmaPort:
    """One port. ``state``: the kernel's word ("ACTIVE"); ``gids``: how many entries of its GID table are not zero."""

    device: str
    number: int
    state: str
    link: str
    gids: int

    @property
    def usable(self) -> bool:
        """Whether pages could go through it."""
        return self.state == "ACTIVE" and self.gids > 0


@dataclass(frozen=True)
class Devices:
    """What is there. ``verbs``: files by which processes reach RDMA devices; ``providers``: configuration of user-space drivers."""

    ports: tuple[RdmaPort, ...] = ()
    portless: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    nvidia: tuple[str, ...] = ()
    peer_memory: bool = False
    rocm: bool = False
    rocm_access: bool = False

    @property
    def rdma(self) -> bool:
        """Whether there is a port through which pages could go."""
        return any(port.usable for port in self.ports)


def look_for_devices(rdma: Path = RDMA, verbs: Path = VERBS, dev: Path = DEV, kfd: Path = KFD) -> Devices:
    """Look; nothing that is absent or not readable is an error."""
    names = _names(rdma)
    ports = tuple(port for name in names for port in _ports(rdma, name))
    return Devices(
        ports=ports,
        portless=tuple(sorted(set(names) - {port.device for port in ports})),
        verbs=tuple(name for name in _names(verbs) if name.startswith("uverbs")),
        providers=tuple(name for folder in PROVIDERS for name in _names(folder)),
        nvidia=tuple(name for name in _names(dev) if name.startswith("nvidia") and name[6:].isdigit()),
        peer_memory=any(line.startswith(("nvidia_peermem ", "nv_peer_mem ")) for line in _text(MODULES).splitlines()),
        rocm=kfd.exists(),
        rocm_access=os.access(kfd, os.R_OK | os.W_OK),
    )


def _ports(root: Path, name: str) -> Iterable[RdmaPort]:
    for number in _names(root / name / "ports"):
        port = root / name / "ports" / number
        gids = (_text(port / "gids" / entry).strip() for entry in _names(port / "gids"))
        filled = sum(bool(gid.replace(":", "").strip("0")) for gid in gids)
        state = _text(port / "state").partition(":")[2].strip() or "unknown"
        yield RdmaPort(name, int(number) if number.isdigit() else 0, state, _text(port / "link_layer").strip(), filled)


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):  # absent, or not for us: either way there is nothing that could be used
        return sorted(entry.name for entry in folder.iterdir())
    return []


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):  # an empty slot of a GID table can't be read; an absent file says nothing
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
