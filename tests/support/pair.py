"""A bootstrap server, a prefill and a decode manager in one process, and rooms between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from kv_core import (
    BaseKVManager,
    BaseKVReceiver,
    BaseKVSender,
    BootstrapServer,
    Failure,
    KVPoll,
    Role,
    TransferConfig,
    load_backend,
)
from kv_core.contract.interfaces import BaseKVHandle
from tests.support.memory import Pages, RankMemory, Shape
from tests.support.waiting import LIMIT_S, wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

BACKEND = "fake"
DEFAULTS: dict[str, Any] = {}
"""Settings of both managers, where a test says nothing else: what its module is run with."""
OTHERS: dict[str, Any] = {}
"""Backends that are not installed, by the names under which tests find them."""
SEED = 20_240_601
QUICK: dict[str, Any] = {
    "bootstrap_timeout_s": 3.0, "waiting_timeout_s": 3.0, "transferring_timeout_s": 3.0, "draining_timeout_s": 1.0,
    "lease_s": 3.0, "close_timeout_s": 2.0, "probe_interval_s": 0.25,
}  # fmt: skip
"""Deadlines for tests that have to wait for one."""


def find(name: str) -> Any:
    """A backend by its name."""
    return OTHERS.get(name) or load_backend(name)


class Pair:
    """Both sides, one rank each. ``config`` goes to both managers, ``prefill`` and ``decode`` to one."""

    def __init__(
        self,
        shape: Shape | None = None,
        *,
        decode_shape: Shape | None = None,
        config: Mapping[str, Any] | None = None,
        prefill: Mapping[str, Any] | None = None,
        decode: Mapping[str, Any] | None = None,
        prefill_args: Mapping[str, Any] | None = None,
        decode_args: Mapping[str, Any] | None = None,
        prefill_observers: Sequence[object] = (),
        decode_observers: Sequence[object] = (),
        backends: tuple[str, str] = (BACKEND, BACKEND),
        seed: int = SEED,
    ) -> None:
        self.seed = seed
        self.source = RankMemory(shape or Shape())
        self.target = RankMemory(decode_shape or shape or Shape())
        self._stack = ExitStack()
        self._rooms = iter(range(1, 1 << 62))
        common = DEFAULTS | dict(config or {})
        with ExitStack() as undo:
            self.server = undo.enter_context(BootstrapServer(port=0))
            self.addr = self.server.address
            self.prefill: BaseKVManager = undo.enter_context(
                find(backends[0]).create_manager(
                    Role.PREFILL, self.source.args(**(prefill_args or {})),
                    TransferConfig(**({"bootstrap_addr": self.addr} | common | dict(prefill or {}))),
                    observers=prefill_observers,
                )
            )  # fmt: skip
            self.decode: BaseKVManager = undo.enter_context(
                find(backends[1]).create_manager(
                    Role.DECODE, self.target.args(**(decode_args or {})), TransferConfig(**(common | dict(decode or {}))),
                    observers=decode_observers,
                )
            )  # fmt: skip
            self._stack = undo.pop_all()

    def close(self) -> None:
        """Close both managers, then the server."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def number(self) -> int:
        """A room number that has not been used here."""
        return next(self._rooms)

    def sender(self, room: int, pages: Pages, *, row: int | None = None, first: int = 0) -> BaseKVSender:
        """Open a room on the prefill side, with its content in these pages; ``init`` is called."""
        self.source.write(self.seed, room, pages, first=first)
        if row is not None:
            self.source.write_row(self.seed, room, row)
        sender = self.prefill.create_sender(self.addr, room)
        sender.init(len(pages), row)
        return sender

    def receiver(self, room: int) -> BaseKVReceiver:
        """Open a room on the decode side; ``init`` is called."""
        receiver = self.decode.create_receiver(self.addr, room)
        receiver.init()
        return receiver

    def good_room(self, room: int | None = None, pages: int = 3) -> None:
        """A room from its opening to its end, which must be a good one; it uses the last pages of both sides."""
        number = self.number() if room is None else room
        source = range(self.source.shape.pages - pages, self.source.shape.pages)
        target = [*range(self.target.shape.pages - pages, self.target.shape.pages)][::-1]
        self.target.wipe(target)
        receiver = self.receiver(number)
        sender = self.sender(number, source)
        receiver.send_metadata(np.array(target))
        sender.send(np.array(source))
        assert_success(sender, receiver)
        assert self.target.holds(self.seed, number, target), f"room {number}: wrong bytes"
        sender.clear()
        receiver.clear()

    @contextmanager
    def cleaning(self) -> Iterator[None]:
        """Rooms that the body opens and does not clear are cleared after it."""
        with patched(self.prefill, "create_sender") as senders, patched(self.decode, "create_receiver") as receivers:
            yield
        for handle in senders + receivers:
            handle.clear()

    @contextmanager
    def alongside(self) -> Iterator[None]:
        """A good room that is in the middle of its life while the body runs, and is finished after it."""
        room, pages = self.number(), [0, 1, 2]
        self.target.wipe(pages)
        receiver, sender = self.receiver(room), self.sender(room, pages)
        receiver.send_metadata(pages)
        wait_until(lambda: sender.poll() is KVPoll.WaitingForInput, "the room that runs at the same time")
        sender.send(pages[:1])
        try:
            yield
        except BaseException:
            receiver.clear()
            sender.clear()
            raise
        sender.send(pages[1:])
        assert_success(sender, receiver)
        assert self.target.holds(self.seed, room, pages), "the room that ran at the same time has wrong bytes"
        receiver.clear()
        sender.clear()

    def at_rest(self) -> None:
        """Wait until no counter of either side says that anything is alive."""
        for manager in (self.prefill, self.decode):
            assert_at_rest(manager)


@contextmanager
def patched(manager: BaseKVManager, create: str) -> Iterator[list[Any]]:
    """Collects what a manager's ``create`` returns."""
    made: list[Any] = []
    original = getattr(manager, create)

    def collect(*args: Any, **named: Any) -> Any:
        handle = original(*args, **named)
        made.append(handle)
        return handle

    setattr(manager, create, collect)
    try:
        yield made
    finally:
        delattr(manager, create)


def assert_success(*handles: BaseKVHandle) -> None:
    """Wait for the end of these rooms; all must have gone well."""
    for handle in handles:
        wait_until(lambda h=handle: h.poll().terminal, lambda h=handle: f"room {h.room} is {h.poll().name}")  # type: ignore[misc]
        assert handle.poll() is KVPoll.Success, f"room {handle.room}: {handle.failure()}"


def assert_failed(handle: BaseKVHandle, limit_s: float = LIMIT_S) -> Failure:
    """Wait for the end of this room, which must be a failure with a sentence; the failure."""
    wait_until(lambda: handle.poll().terminal, lambda: f"room {handle.room} is {handle.poll().name}", limit_s)
    failure = handle.failure()
    assert failure is not None, f"room {handle.room} ended with {handle.poll().name}"
    assert len(failure.message.split()) >= 4, f"no sentence: {failure}"
    assert handle.poll() is KVPoll.Failed
    return failure


TOTALS = frozenset({"dropped", "frames_in", "frames_out", "dropped_chunks", "stray_records", "staged_batches"})
"""Counters that only grow."""
LASTING = frozenset({"fabrics", "peers", "nodes", "connections", "established", "probes", "tombstones", "resolving"})
"""What outlives rooms on purpose: sessions, and reasons that are remembered for a while."""


def at_rest(snapshot: Mapping[str, Any], *, ignore: frozenset[str] = TOTALS | LASTING) -> list[str]:
    """What in a snapshot says that something is still alive; a counter that is new is looked at too."""
    found: list[str] = []
    for name, value in snapshot.items():
        if name in ignore:
            continue
        if isinstance(value, Mapping):
            found += [f"{name}.{text}" for text in at_rest(value, ignore=ignore)]
        elif isinstance(value, (list, tuple)):
            found += [f"{name}={value}"] if any(value) else []
        elif value:
            found.append(f"{name}={value}")
    return found


def assert_at_rest(manager: BaseKVManager) -> None:
    """Wait until the manager's snapshot says that nothing is alive."""
    wait_until(lambda: not at_rest(manager.snapshot()), lambda: f"not at rest: {at_rest(manager.snapshot())}")
