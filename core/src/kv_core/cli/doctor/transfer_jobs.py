"""In a child: register memory, be a prefill side that waits for doctors, be a decode side that fetches. The public face only."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from contextlib import ExitStack
from time import monotonic
from typing import Any

import numpy as np

from kv_core.cli.doctor.jobs import (
    Fetch,
    Job,
    ManagerSettings,
    Met,
    Moved,
    Register,
    Registered,
    Serve,
    Serving,
    Tell,
    Trouble,
)
from kv_core.cli.doctor.memory import Memory
from kv_core.cli.doctor.rooms import ROOMS, fresh_room
from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import FailureCode, KVPoll, Role
from kv_core.contract.failures import KVCoreError
from kv_core.contract.interfaces import BaseKVHandle, BaseKVManager, BaseKVSender
from kv_core.contract.memory import KV_POOL, Buffer, KVArgs, Pool
from kv_core.registry import load_backend
from kv_core.runtime import BootstrapServer
from kv_core.runtime.bootstrap import BootstrapClient

POLL_S = 0.001
IDLE_S = 0.02
RENEW_S = 60.0
"""The bootstrap server forgets rooms after five minutes."""
FOREVER_S = 1e8
ROUNDS = 2
"""Rooms that a visitor fetches: the first one also makes the connection."""
FABRIC_S = 5.0
"""How long the decode side waits for its transport to have met the peer, once the handshake has passed."""


def do(job: Job, tell: Tell) -> None:
    """Do one of the three. What kv-core raises on purpose is told; anything else ends the process."""
    work: Callable[[Any, Tell], None] = _fetch
    if isinstance(job, Register):
        work = _register
    elif isinstance(job, Serve):
        work = _serve
    try:
        work(job, tell)
    except (KVCoreError, OSError, ImportError) as error:
        tell(Trouble("start", type(error).__name__, str(error)))


def _manager(settings: ManagerSettings, role: Role, args: KVArgs, **more: Any) -> BaseKVManager:
    config = TransferConfig(
        host=settings.host,
        advertised_host=settings.advertised_host,
        control_port=settings.control_port,
        options=settings.options,
        require_transport=settings.require_transport or None,
        **{
            "bootstrap_timeout_s": settings.timeout_s, "waiting_timeout_s": settings.timeout_s,
            "transferring_timeout_s": settings.timeout_s, "draining_timeout_s": 1.0, "close_timeout_s": 2.0,
        } | more,
    )  # fmt: skip
    return load_backend(settings.backend).create_manager(role, args, config)


# -- registering -------------------------------------------------------------------------------------------------------


def _register(job: Register, tell: Tell) -> None:
    for size in job.sizes:
        memory = np.full(size, 1, np.uint8)
        began = monotonic()
        args = KVArgs(kv=Pool(KV_POOL, (Buffer(memory.ctypes.data, size, 1, 0),)))
        with _manager(job.manager, Role.PREFILL, args):
            tell(Registered(size, monotonic() - began))


# -- the prefill side --------------------------------------------------------------------------------------------------


def _serve(job: Serve, tell: Tell) -> None:
    memory = Memory(job.layout, job.pages)
    memory.fill()
    with ExitStack() as stack:
        server = stack.enter_context(BootstrapServer(host=job.manager.host, port=job.port))
        manager = stack.enter_context(
            _manager(
                job.manager, Role.PREFILL, memory.args(), bootstrap_addr=server.address, bootstrap_timeout_s=FOREVER_S
            )
        )
        desk = Desk(manager, server.address, job.pages, tell)
        stack.callback(desk.close)
        _until_ready(server, job.manager.timeout_s)
        desk.open_all()
        tell(Serving(server.address))
        while not select.select([0], [], [], IDLE_S)[0]:  # the doctor says nothing more: its end of the pipe closes
            desk.look()


def _until_ready(server: BootstrapServer, timeout_s: float) -> None:
    pause, deadline = threading.Event(), monotonic() + timeout_s
    while not server.snapshot()["ready"]:
        if monotonic() >= deadline:
            raise KVCoreError(f"the prefill rank did not register with its own bootstrap server within {timeout_s:g} s")
        pause.wait(POLL_S)


class Desk:
    """Keeps ``ROOMS`` open for visitors, all pages handed over in each, and opens one anew when it has ended."""

    def __init__(self, manager: BaseKVManager, addr: str, pages: int, tell: Tell) -> None:
        self._manager = manager
        self._addr = addr
        self._pages = np.arange(pages, dtype=np.uint64)
        self._tell = tell
        self._client = BootstrapClient(addr)
        self._senders: dict[int, tuple[BaseKVSender, float]] = {}
        self._renew_at = 0.0

    def open_all(self) -> None:
        """Open what is not open, and say where."""
        for room in ROOMS:
            if room not in self._senders:
                sender = self._manager.create_sender(self._addr, room)
                sender.init(self._pages.size)
                sender.send(self._pages)
                self._senders[room] = (sender, monotonic())
        if monotonic() >= self._renew_at:
            self._renew_at = monotonic() + RENEW_S
            for room in ROOMS:
                self._client.register_dp_rank(room, 0)

    def look(self) -> None:
        """Tell of rooms that have ended, and open them anew. A room whose pages are not safe is waited for."""
        for room, (sender, opened) in list(self._senders.items()):
            if sender.poll().terminal and sender.is_release_safe():
                self._tell(_ended(sender, self._manager, opened, wrong=0))
                sender.clear()
                del self._senders[room]
        self.open_all()

    def close(self) -> None:
        """Give up what is open."""
        for sender, _ in self._senders.values():
            sender.clear()


# -- the decode side ---------------------------------------------------------------------------------------------------


def _fetch(job: Fetch, tell: Tell) -> None:
    memory = Memory(job.layout, job.pages)
    with _manager(job.manager, Role.DECODE, memory.args()) as manager:
        if not job.rooms:
            _meet(job, manager, tell)
        wanted = ROUNDS
        for room in job.rooms:
            news = _fetch_room(job, manager, memory, room)
            if isinstance(news, Trouble) and news.code == FailureCode.DUPLICATE_ROOM.value and room != job.rooms[-1]:
                continue  # another visitor was quicker
            tell(news)
            wanted -= 1
            if not wanted or isinstance(news, Trouble):
                return


def _meet(job: Fetch, manager: BaseKVManager, tell: Tell) -> None:
    receiver = manager.create_receiver(job.addr, fresh_room())
    receiver.init()
    _wait(lambda: receiver.poll() is not KVPoll.Bootstrapping, job.manager.timeout_s)
    if receiver.poll() is KVPoll.WaitingForInput:
        fabric = _fabric(receiver, manager)  # the transport meets the peer after the handshake, and may refuse it then
        if not receiver.poll().terminal:
            tell(Met(fabric))
    if receiver.poll().terminal:
        tell(_trouble(receiver, "handshake"))
    receiver.abort("the doctor only wanted to meet")
    receiver.clear()


def _fetch_room(job: Fetch, manager: BaseKVManager, memory: Memory, room: int) -> Moved | Trouble:
    memory.poison()
    order = np.arange(job.pages, dtype=np.uint64)[::-1].copy()
    began = monotonic()
    receiver = manager.create_receiver(job.addr, room)
    receiver.init()
    receiver.send_metadata(order)
    _wait(lambda: receiver.poll().terminal, 2 * job.manager.timeout_s)
    good = receiver.poll() is KVPoll.Success
    news = _ended(receiver, manager, began, wrong=memory.wrong_bytes(order) if good else 0)
    receiver.clear()
    return news


def _ended(handle: BaseKVHandle, manager: BaseKVManager, began: float, *, wrong: int) -> Moved | Trouble:
    if handle.poll() is not KVPoll.Success:
        return _trouble(handle, "transfer")
    metric = handle.get_transfer_metric()
    wall_s = monotonic() - began
    fabric = _fabric(handle, manager)
    return Moved(metric.transfer_total_bytes or 0, wrong, wall_s, metric.transfer_latency_s, fabric)


def _trouble(handle: BaseKVHandle, step: str) -> Trouble:
    failure = handle.failure()
    if failure is None:
        return Trouble(
            step, "TimeoutError", f"the room was still {handle.poll().name} when the doctor lost its patience"
        )
    return Trouble(step, "Failure", failure.message, failure.stage.value, failure.code.value, failure.retryable)


def _fabric(handle: BaseKVHandle, manager: BaseKVManager) -> str:
    def named() -> bool:
        return bool(manager.snapshot().get("fabrics")) or handle.poll() is KVPoll.Failed

    _wait(named, FABRIC_S)
    return ", ".join(sorted(set(manager.snapshot().get("fabrics", {}).values())))


def _wait(condition: Callable[[], bool], timeout_s: float) -> None:
    pause, deadline = threading.Event(), monotonic() + timeout_s
    while not condition() and monotonic() < deadline:
        pause.wait(POLL_S)
