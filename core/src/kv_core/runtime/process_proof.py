"""Proof that a process has ended, from the process table of the host that both live on.

A dead process writes no more into anybody's memory; silence, a timeout or a broken connection prove nothing of the kind.
What describes a process comes from the network: everything in it is checked, and whatever is not understood proves
nothing. A pid says something only together with the pid namespace and the boot that it belongs to, and a pid is used
again, so the start time belongs to it (Linux: ``man 5 proc``; elsewhere nothing is ever proven).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")
_MAX_PID = 2**31 - 1
_MAX = 2**63 - 1
_MAX_TEXT = 512
_ENDED = frozenset("ZXx")


def describe_process() -> dict[str, str | int]:
    """What to tell of this process, for ``is_proven_dead`` in another one. Empty where there is no /proc.

    Keys: ``host``, ``pid``, ``start``. ``host``: what makes a pid and a start time mean the same thing in two processes; ``start``: when the process began,
    in clock ticks after the boot.
    """
    host = _host_id()
    try:
        stat = _parse_stat((_PROC / "self" / "stat").read_bytes())
    except OSError:
        return {}
    if host is None or stat is None:
        return {}
    return {"host": host, "pid": os.getpid(), "start": stat[1]}


def is_proven_dead(process: Mapping[str, object]) -> bool:
    """Whether the process that ``describe_process`` described has certainly ended. Never raises.

    True only for a process of this boot and of this pid namespace whose pid is free, belongs to a process that started
    at another time, or is a zombie. False means "not proven".
    """
    host, pid, start = process.get("host"), process.get("pid"), process.get("start")
    if not isinstance(host, str) or len(host) > _MAX_TEXT or not _is_count(pid, _MAX_PID) or not _is_count(start, _MAX):
        return False
    if pid == 0 or host != _host_id():
        return False
    return _has_ended(int(str(pid)), int(str(start)))


def _is_count(value: object, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit


def _has_ended(pid: int, start: int) -> bool:
    try:
        seen = _parse_stat((_PROC / str(pid) / "stat").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return not _exists(pid)
    except OSError:
        return False
    if seen is None:
        return False
    state, begun = seen
    return begun != start or (state in _ENDED and _threads_have_ended(pid))


def _exists(pid: int) -> bool:
    """Asks the kernel itself: a /proc mounted with ``hidepid`` hides living processes of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # not permitted: so there is one
        return True
    return True


def _threads_have_ended(pid: int) -> bool:
    """A process whose first thread has left is shown as a zombie while its other threads work on."""
    try:
        for task in (_PROC / str(pid) / "task").iterdir():
            seen = _parse_stat((task / "stat").read_bytes())
            if seen is None or seen[0] not in _ENDED:
                return False
    except OSError:  # reaped, or a thread ended, while we looked: the next look will tell
        return False
    return True


def _host_id() -> str | None:
    """Boot, host name, and the namespaces of pids and of clocks (start times are shown relative to one's own).

    The host's name is there for virtual machines restored from one snapshot: they share the boot's id. None where there
    is no /proc, or where it belongs to another pid namespace than this process.
    """
    try:
        if (_PROC / "self").readlink().name != str(os.getpid()):
            return None
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        clocks = _PROC / "self/ns/time"
        spaces = [(_PROC / "self/ns/pid").stat().st_ino, clocks.stat().st_ino if clocks.exists() else 0]
        return "/".join([boot, os.uname().nodename, *map(str, spaces)])
    except (OSError, ValueError):
        return None


def _parse_stat(stat: bytes) -> tuple[str, int] | None:
    """State and start time. The second field is the program's name in parentheses, and it may contain any byte."""
    fields = stat.rpartition(b")")[2].split()
    try:
        return fields[0].decode("ascii"), int(fields[19])
    except (IndexError, ValueError):
        return None
