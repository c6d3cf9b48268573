"""Backends that wait wrongly, and backends that leave something behind."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import ClassVar

from conformance.tests.mutants.base import mutant
from kv_core import TransportError
from kv_core.contract.transport import (
    PeerKey,
    Prepared,
    Transfer,
    TransferBatch,
    TransportContext,
)
from kv_fake import FakeTransport
from kv_fake.outbound import FakeTransfer


class OwnBell(FakeTransport):
    """kv-fake with a bell of its own for what it does itself; ``wake`` is for the others."""

    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        super().add_peer(peer, descriptor)
        self._peers[peer]._wake = self.ring

    def ring(self) -> None:
        """What wakes the owner thread inside."""
        FakeTransport.wake(self)


@mutant("wake_is_ignored", "KV-THR-6")
class WakeIsIgnored(OwnBell):
    """``wake`` ends a wait: here it does nothing."""

    def wake(self) -> None:
        return


@mutant("wake_before_wait_is_lost", "KV-THR-6")
class WakeBeforeWaitIsLost(OwnBell):
    """``wake`` also ends the next wait: here only one that has begun."""

    waiting = False

    def wait(self, timeout_s: float) -> None:
        self.waiting = True
        super().wait(timeout_s)
        self.waiting = False

    def wake(self) -> None:
        if self.waiting:
            super().wake()


@mutant("wake_stays", "KV-THR-6")
class WakeStays(FakeTransport):
    """A wake ends one wait: here all waits from then on."""

    woken = False

    def wait(self, timeout_s: float) -> None:
        super().wait(0.0 if self.woken else timeout_s)

    def wake(self) -> None:
        self.woken = True
        super().wake()


@mutant("wait_spins", "KV-THR-8")
class WaitSpins(FakeTransport):
    """``wait`` blocks without a busy loop: here it looks again and again."""

    rung = False

    def wait(self, timeout_s: float) -> None:
        deadline = monotonic() + timeout_s
        while monotonic() < deadline and not self.rung:
            super().wait(0.0)
        self.rung = False

    def wake(self) -> None:
        self.rung = True
        super().wake()


@mutant("wait_returns_at_once", "KV-THR-6")
class WaitReturnsAtOnce(FakeTransport):
    """``wait`` blocks until something may have happened: here it returns at once."""

    def wait(self, timeout_s: float) -> None:
        super().wait(0.0)


@mutant("wait_outlasts_its_limit", "KV-THR-6")
class WaitOutlastsItsLimit(FakeTransport):
    """``wait`` returns after its time-out: here only when something has happened."""

    def wait(self, timeout_s: float) -> None:
        super().wait(timeout_s if timeout_s <= 0.0 else 1e6)


@mutant("wait_misses_the_end_of_a_transfer", "KV-THR-7")
class WaitMissesTheEndOfATransfer(FakeTransport):
    """``wait`` ends when a transfer may have moved on: here only at its limit, or when it is woken."""

    woken: threading.Event

    def __init__(self, context: TransportContext) -> None:
        self.woken = threading.Event()
        super().__init__(context)

    def wait(self, timeout_s: float) -> None:
        self.woken.wait(timeout_s)
        self.woken.clear()
        super().wait(0.0)

    def wake(self) -> None:
        self.woken.set()

    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        super().add_peer(peer, descriptor)
        self._peers[peer]._wake = lambda: None


@mutant("wake_blocks", "KV-THR-6")
class WakeBlocks(FakeTransport):
    """``wake`` never blocks: here it does when nobody has listened to the first thousand."""

    def __init__(self, context: TransportContext) -> None:
        self.unheard = threading.Semaphore(1_000)
        super().__init__(context)

    def wake(self) -> None:
        self.unheard.acquire()
        super().wake()

    def wait(self, timeout_s: float) -> None:
        super().wait(timeout_s)
        self.unheard = threading.Semaphore(1_000)


@mutant("wake_after_close_raises", "KV-END-6")
class WakeAfterCloseRaises(FakeTransport):
    """``wake`` may be called at any time, also after ``close``: here it raises then."""

    def wake(self) -> None:
        if self._closed:
            raise TransportError("it is closed", quiescent=True)
        super().wake()


@mutant("close_twice_raises", "KV-END-6")
class CloseTwiceRaises(FakeTransport):
    """``close`` is idempotent: here the second one raises."""

    def close(self) -> None:
        if self._closed:
            raise TransportError("it is closed already", quiescent=True)
        super().close()


@mutant("thread_is_left", "KV-END-3")
class ThreadIsLeft(FakeTransport):
    """``close`` ends every thread: here one goes on."""

    def __init__(self, context: TransportContext) -> None:
        super().__init__(context)
        threading.Thread(target=threading.Event().wait, name="left-behind").start()


@mutant("thread_for_each_peer_is_left", "KV-PEER-7")
class ThreadForEachPeerIsLeft(FakeTransport):
    """A removed peer leaves nothing behind: here a thread, until ``close``."""

    def __init__(self, context: TransportContext) -> None:
        self.over = threading.Event()
        super().__init__(context)

    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        super().add_peer(peer, descriptor)
        threading.Thread(target=self.over.wait, name=f"for-{peer.name[:6]}").start()

    def close(self) -> None:
        super().close()
        self.over.set()


@mutant("descriptor_is_left", "KV-END-3")
class DescriptorIsLeft(FakeTransport):
    """``close`` closes every descriptor: here two stay open."""

    def __init__(self, context: TransportContext) -> None:
        super().__init__(context)
        self.left = os.pipe()


@mutant("port_is_left", "KV-ABORT-21")
class PortIsLeft(FakeTransport):
    """After ``close`` nothing listens any more: here the NIC does, and takes frames."""

    def close(self) -> None:
        nic_close, self._nic.close = self._nic.close, lambda: None  # type: ignore[method-assign]
        super().close()
        self._nic.close = nic_close  # type: ignore[method-assign]


@mutant("connections_are_left", "KV-END-8")
class ConnectionsAreLeft(PortIsLeft):
    """What peers have on its way when a transport is closed does not land: here their connections are read to their end."""


@mutant("memory_for_each_opening", "KV-END-4")
class MemoryForEachOpening(FakeTransport):
    """A closed transport leaves nothing behind: here its buffers of 8 MiB."""

    kept: ClassVar[list[bytes]] = []

    def __init__(self, context: TransportContext) -> None:
        super().__init__(context)
        self.kept.append(b"\1" * (8 << 20))


@mutant("close_waits_for_a_frozen_peer", "KV-ABORT-15")
class CloseWaitsForAFrozenPeer(FakeTransport):
    """``close`` ends whatever the peers do: here it waits for what is outstanding."""

    def __init__(self, context: TransportContext) -> None:
        self.under_way: list[FakeTransfer] = []
        super().__init__(context)

    def submit(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        transfer = super().submit(prepared, batch)
        self.under_way.append(transfer)
        return transfer

    def release(self, transfer: Transfer) -> None:
        if transfer in self.under_way:
            self.under_way.remove(transfer)
        super().release(transfer)

    def close(self) -> None:
        while not self._closed and not _at_rest(self.under_way):
            self.wait(0.1)
            list(self.progress(self.under_way))
        super().close()


def _at_rest(transfers: Sequence[FakeTransfer]) -> bool:
    return all(transfer.quiescent for transfer in transfers)


@mutant("constructor_leaves_a_descriptor", "KV-END-7")
class ConstructorLeavesADescriptor(FakeTransport):
    """A constructor that fails leaves nothing: here the descriptor that it had opened before it looked at its options."""

    def __init__(self, context: TransportContext) -> None:
        self.early = os.open(os.devnull, os.O_RDONLY)
        super().__init__(context)

    def close(self) -> None:
        super().close()
        if self.early >= 0:
            os.close(self.early)
            self.early = -1


@mutant("lock_file_is_left", "KV-RST-3")
class LockFileIsLeft(FakeTransport):
    """A process that was killed is in nobody's way: here its lock file is, in that of the next prefill process of the same
    bootstrap server.
    """

    def __init__(self, context: TransportContext) -> None:
        server = context.config.bootstrap_addr or ""
        self.lock = Path(tempfile.gettempdir(), f"kv-mutant-{server.replace(':', '-')}.lock")
        if server and self.lock.exists():
            raise TransportError(f"{self.lock} exists: is another process running?", quiescent=True)
        super().__init__(context)
        if server:
            self.lock.touch()

    def close(self) -> None:
        self.lock.unlink(missing_ok=True)
        super().close()


@mutant("heir_of_a_dead_peer", "KV-RST-4")
class HeirOfADeadPeer(FakeTransport):
    """What was prepared for a peer is for that one: here for whoever was met last, once the connection to it has broken."""

    def post(self, transfer: FakeTransfer) -> None:
        outbound = self._peers.get(transfer.peer)
        if outbound is not None and outbound.connection is None and outbound._number:
            transfer.peer = next(reversed(self._peers))
        super().post(transfer)
