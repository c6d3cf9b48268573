"""Names, addresses and ports: what resolves, what can be bound, who holds it."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Name:
    """A host's name, resolved. ``problem``: why it can't be; else ``addresses`` has numeric ones."""

    host: str
    addresses: tuple[str, ...]
    problem: str = ""


@dataclass(frozen=True)
class Bound:
    """An attempt to listen. ``code``: the system's error number, 0 if it went well. ``holder``: who has the port, as far as we see."""

    host: str
    port: int
    code: int = 0
    text: str = ""
    holder: str = ""


def resolve(host: str) -> Name:
    """Resolve a name or a literal. May take as long as the name server does."""
    bare = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Name(host, (), getattr(error, "strerror", None) or str(error))
    return Name(host, tuple(dict.fromkeys(str(entry[4][0]) for entry in found)))


def try_bind(host: str, port: int) -> Bound:
    """Listen on one address, for a moment. Port 0: is it an address of this machine at all?"""
    bare = host.removeprefix("[").removesuffix("]")
    try:
        entry = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(entry[0], entry[1]) as listener:
            # As servers do: the connections of one that has just ended must not look like a holder of the port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(entry[4])
            listener.listen(1)
    except (OSError, UnicodeError) as error:
        code = getattr(error, "errno", None) or errno.EINVAL
        holder = _holder(port) if code == errno.EADDRINUSE else ""
        return Bound(host, port, code, getattr(error, "strerror", None) or str(error), holder)
    return Bound(host, port)


def is_local(address: str) -> bool:
    """Whether a numeric address is one of this machine's."""
    return try_bind(address, 0).code == 0


def is_loopback(address: str) -> bool:
    """Whether a numeric address never leaves this machine."""
    with contextlib.suppress(ValueError):  # no numeric address: then it is not one of those either
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    return False


def own_address_towards(host: str, port: int) -> str:
    """The address from which this machine would speak to that host; empty if there is no way. Nothing is sent."""
    with contextlib.suppress(OSError, UnicodeError):  # no route, or no such name: others say so in better words
        entry = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(entry[0], entry[1]) as probe:
            probe.connect(entry[4])
            return str(probe.getsockname()[0])
    return ""


def try_connect(host: str, port: int, timeout_s: float) -> str:
    """Connect and hang up. Why it could not be, or ""."""
    try:
        socket.create_connection((host, port), timeout_s).close()
    except (OSError, UnicodeError) as error:
        return "no answer in time" if isinstance(error, TimeoutError) else str(error)
    return ""


def _holder(port: int) -> str:
    """The process that listens on a port, from the kernel's tables; empty where those do not tell us."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):  # no /proc: then nobody can be named
            for line in (PROC / "net" / table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in PROC.iterdir() if inodes else ():
        if process.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if any(os.readlink(file) in inodes for file in (process / "fd").iterdir()):  # noqa: PTH115
                    name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
                    return f"{name} (pid {process.name})"
    return ""
