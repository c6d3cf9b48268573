"""What a node's process holds, and managers that are closed, or never come to be, inside of it."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from kv_conformance.nodes.face_server import FaceServer
from kv_conformance.nodes.memory import Memory, Shape
from kv_conformance.nodes.wire_server import WireServer
from kv_conformance.suite.in_node_threads import at_once
from kv_core import Buffer, KVArgs, Pool, TransferConfig, load_backend

SETTLED = 4
"""So many equal looks in a row say that nothing is ending any more."""
PAUSE_S = 0.01
KEPT: list[Memory] = []
"""What managers have registered must stay mapped as long as they live."""
LIBC = ctypes.CDLL(None, use_errno=True)
NUMBERS = re.compile(r"\d+")


@dataclass(frozen=True)
class Holding:
    """What a process holds: threads by name, descriptors by what they are, and memory of its own, in bytes."""

    threads: Mapping[str, int]
    descriptors: Mapping[str, int]
    memory: int

    def count(self) -> int:
        """How many threads and descriptors."""
        return sum(self.threads.values()) + sum(self.descriptors.values())

    def beyond(self, other: Holding) -> list[str]:
        """Threads and descriptors that this one has and the other one has not."""
        found = []
        for what, mine, theirs in (
            ("thread", self.threads, other.threads), ("descriptor", self.descriptors, other.descriptors),
        ):  # fmt: skip
            if sum(mine.values()) > sum(theirs.values()):
                more = Counter(mine) - Counter(theirs)
                found += [f"{count} more {what}{'s' if count > 1 else ''} {name!r}" for name, count in more.items()]
        return found


def holding() -> Holding:
    """What this process holds now. Numbers in names count as equal: they are new each time."""
    threads: Counter[str] = Counter()
    descriptors: Counter[str] = Counter()
    for task in Path("/proc/self/task").iterdir():
        try:
            threads[NUMBERS.sub("#", (task / "comm").read_text(encoding="utf-8", errors="replace").strip())] += 1
        except OSError:  # it ended just now
            continue
    for link in Path("/proc/self/fd").iterdir():
        try:
            descriptors[NUMBERS.sub("#", str(link.readlink()))] += 1
        except OSError:  # the descriptor of this very listing
            continue
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    anonymous = re.search(r"RssAnon:\s+(\d+) kB", status)
    return Holding(dict(threads), dict(descriptors), int(anonymous[1]) << 10 if anonymous else 0)


def settled(limit_s: float) -> Holding:
    """What this process holds when nothing is ending any more: threads that were joined may be seen a moment longer."""
    gc.collect()
    deadline, seen, same = monotonic() + limit_s, holding(), 0
    while same < SETTLED and monotonic() < deadline:
        sleep(PAUSE_S)
        now = holding()
        same = same + 1 if (now.threads, now.descriptors) == (seen.threads, seen.descriptors) else 0
        seen = now
    return seen


def held_by(_server: FaceServer, baseline: Holding | None, limit_s: float) -> Holding:
    """What the node's process holds when it has settled, and, if there is a baseline, when it holds no more than that."""
    deadline, seen = monotonic() + limit_s, settled(limit_s)
    while baseline is not None and seen.beyond(baseline) and monotonic() < deadline:
        sleep(PAUSE_S)
        seen = settled(limit_s)
    return seen


# -- closing -------------------------------------------------------------------------------------------------------------


def close_from_two_threads(server: FaceServer) -> None:
    """Close the manager from two threads at once, and then twice more."""
    at_once(2, lambda _number: server.manager.close())
    server.manager.close()
    server.manager.close()


def use_after_close(server: FaceServer) -> list[str]:
    """Call everything that a handle has; what raised."""
    wrong = []
    for handle in server.handles.values():
        for name in ("poll", "failure", "get_transfer_metric", "is_release_safe", "abort", "clear"):
            try:
                getattr(handle, name)()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is shown
                wrong.append(f"room {handle.room}: {name}() raised {type(error).__name__}: {error}")
    return wrong


def give_away(server: FaceServer, shape: Shape) -> None:
    """Take the memory out of the process's reach, as if it were unmapped: whoever touches it kills the process. The manager is
    replaced by a new one over other memory.
    """
    length = -(-server.memory.shape.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    if LIBC.mprotect(ctypes.c_void_p(server.memory.address), ctypes.c_size_t(length), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    server.handles.clear()
    KEPT.append(Memory(shape))
    server.manager = server.create(KEPT[-1])


# -- managers that never come to be --------------------------------------------------------------------------------------


def failures(server: FaceServer, refused: Mapping[str, object] | None) -> dict[str, Callable[[], Any]]:
    """Ways in which a manager can't be made, each at another step. ``refused``: options under which memory is refused."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    options = dict(server.order.config.get("options", {}))
    hole = mmap.mmap(-1, mmap.PAGESIZE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(hole))
    gc.collect()
    hole.close()
    unmapped = KVArgs(kv=Pool("kv", (Buffer(at, 64, 16, 0),)), model="conformance")
    config = TransferConfig(**server.order.config)
    ways: dict[str, Callable[[], Any]] = {
        "the control port is taken": lambda: server.create(control_port=taken.getsockname()[1]),
        "an option is unknown": lambda: server.create(options={**options, "no such option": 1}),
        "the memory is not mapped": lambda: load_backend(server.order.backend).create_manager(
            server.order.role, unmapped, config
        ),
        "the bootstrap address is none": lambda: server.create(bootstrap_addr="no address"),
    }
    if refused is not None:
        ways["a region can't be registered"] = lambda: server.create(options={**options, **refused})
    return ways


def fail_to_create(server: FaceServer, refused: Mapping[str, object] | None, limit_s: float) -> dict[str, list[str]]:
    """Fail in each way again and again; for each that did fail: what the later times left behind. The node's own manager is
    closed first: what it opens and closes would be seen, too.
    """
    server.manager.close()
    left: dict[str, list[str]] = {}
    for name, create in failures(server, refused).items():
        if not _fails(create):
            continue
        before = settled(limit_s)
        for _ in range(3):
            _fails(create)
        left[name] = held_by(server, before, limit_s).beyond(before)
    return left


def _fails(create: Callable[[], Any]) -> bool:
    try:
        create().close()
    except Exception:  # noqa: BLE001 - what is raised is another check's affair
        return True
    return False


# -- transports ----------------------------------------------------------------------------------------------------------


def wake_after_close(server: WireServer, times: int) -> list[str]:
    """Close the transport twice, let others get the numbers of its descriptors, and wake it in many threads; what was raised, or
    was written to others' descriptors.
    """
    server.close()
    server.close()
    pairs = [socket.socketpair() for _ in range(32)]
    pipes = [os.pipe() for _ in range(32)]
    wrong: list[str] = []

    def ring(_number: int) -> None:
        for _ in range(times):
            server.transport.wake()

    try:
        at_once(4, ring)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is shown
        wrong.append(f"wake() after close() raised {type(error).__name__}: {error}")
    readers = [*(end.fileno() for pair in pairs for end in pair), *(read for read, _ in pipes)]
    for reader in readers:
        os.set_blocking(reader, False)
        try:
            found = os.read(reader, 64)
        except BlockingIOError:
            continue
        wrong.append(f"wake() after close() wrote {found!r} into descriptor {reader}, which is somebody else's by now")
    for pair in pairs:
        for end in pair:
            end.close()
    for pipe in pipes:
        for descriptor in pipe:
            os.close(descriptor)
    return wrong
