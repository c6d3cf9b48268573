"""A software NIC: the transport contract over TCP, from source pages straight into destination pages."""

from __future__ import annotations

import errno
import itertools
import logging
import selectors
import socket
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np

from kv_core import Direction, Region, ThreadingModel, TransferState, TransportError
from kv_core.contract.transport import (
    PeerKey,
    Prepared,
    Transfer,
    TransferBatch,
    TransferPlan,
    TransferProgress,
    Transport,
    TransportContext,
)
from kv_fake.iovec import Pieces
from kv_fake.memory import RegisteredMemory
from kv_fake.nic import Nic
from kv_fake.outbound import FakeTransfer, Outbound
from kv_fake.pulling import Puller
from kv_fake.wire import ACCEPTED, Descriptor, Header, Preamble, Purpose, segment_table

PROBE_S = 1.0


class FakePrepared(Prepared):
    """What two layouts have to do with each other: the regions' numbers on each side, checked once."""

    def __init__(self, peer: PeerKey, plan: TransferPlan) -> None:
        super().__init__(peer, plan)
        self.local = np.array([region.index for region in plan.local_regions], np.uint64)
        self.remote = np.array([region.index for region in plan.remote_regions], np.uint64)


class SoftwareNic(Transport):
    """One process's NIC: memory that peers may write, or read (``Nic``), and a connection to each peer (``Outbound``, ``Puller``).

    The owner thread submits and reads acknowledgements; threads of the NIC block in the kernel for everything else.
    """

    threading = ThreadingModel.OWNER
    staging_below = 2_048  # measured: docs/topologies.md

    def __init__(self, context: TransportContext) -> None:
        super().__init__(context)
        self._reads = context.direction is Direction.READ
        self._logger = logging.getLogger(__name__)
        self._memory = RegisteredMemory()
        self._nic = Nic(self._memory, self._logger, Purpose.READ if self._reads else Purpose.DATA)
        self._nic.open(context.config.host)
        # Each peer is an Outbound, or in a NIC that reads a Puller, which has the same face.
        self._peers: dict[PeerKey, Any] = {}
        self._removed: list[Any] = []
        self._numbers = itertools.count(1)
        self._connections = itertools.count(1)  # over all peers and generations: a later one never has a lower number
        self._selector = selectors.DefaultSelector()
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._watched: dict[Any, socket.socket] = {}
        self._dead: SimpleQueue[socket.socket] = SimpleQueue()
        self._looked = False
        self._closed = False

    # -- memory ----------------------------------------------------------------------------------------------------

    def register_memory(self, regions: Sequence[Region]) -> None:
        """See ``Transport``."""
        self._memory.register(regions)

    def deregister_memory(self, regions: Sequence[Region]) -> None:
        """See ``Transport``. A frame that lands there right now is cut off, with its connection."""
        gone = self._memory.deregister(regions)
        if gone:
            self._nic.evict(gone)

    # -- peers -----------------------------------------------------------------------------------------------------

    def local_descriptor(self) -> bytes:
        """See ``Transport``."""
        return Descriptor(self.context.advertised_host, self._nic.port, self._nic.token).pack()

    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        """See ``Transport``."""
        try:
            where = Descriptor.unpack(descriptor)
        except ValueError as error:
            raise TransportError(f"peer {peer.name[:8]} sent {error}", quiescent=True) from error
        me, running = self.context.instance_id, self._nic.running
        self._peers[peer] = (
            Puller(me, peer, where, self._connections, running, self.wake)
            if self._reads
            else Outbound(me, peer, where, self._connections, running, self.wake, self._dead.put)
        )

    def remove_peer(self, peer: PeerKey) -> None:
        """See ``Transport``."""
        outbound = self._peers.pop(peer, None)
        if outbound is not None:
            outbound.remove()
            self._removed.append(outbound)

    def prepare(self, peer: PeerKey, plan: TransferPlan) -> FakePrepared:
        """See ``Transport``."""
        if peer not in self._peers:
            raise TransportError(f"peer {peer.name[:8]} generation {peer.generation} is not known", quiescent=True)
        return FakePrepared(peer, plan)

    def describe(self, peer: PeerKey) -> str:
        """See ``Transport``."""
        return "tcp"

    def fabrics(self) -> tuple[str, ...]:
        """See ``Transport``."""
        return ("tcp",)

    # -- transfers -------------------------------------------------------------------------------------------------

    def submit(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        """See ``Transport``."""
        transfer = self.frame(prepared, batch)
        self.post(transfer)
        return transfer

    def frame(self, prepared: Prepared, batch: TransferBatch) -> FakeTransfer:
        """A batch as one frame: header, segment table, then the pages themselves, by address. One that reads ends with the table;
        its pieces are filled.
        """
        assert isinstance(prepared, FakePrepared), "made by prepare()"
        copies = batch.copies()
        number, nbytes = next(self._numbers), int(copies.length.sum())
        if not len(copies.length):
            return FakeTransfer(prepared.peer, number, b"", None, 0)
        local = prepared.local[copies.local_region.astype(np.intp)]
        pages, wrong = self._memory.locate(local, copies.local_offset, copies.length)
        if wrong >= 0:
            raise TransportError(
                f"copy {wrong} of {len(local)} {'fills' if self._reads else 'reads'} {copies.length[wrong]} bytes at offset {copies.local_offset[wrong]} "
                f"of region {local[wrong]}, which is not inside the memory registered here",
                quiescent=True,
            )
        head = Header(number, len(copies.length), nbytes).pack()
        remote = prepared.remote[copies.remote_region.astype(np.intp)]
        head += segment_table(remote, copies.remote_offset, copies.length)
        if self._reads:
            return FakeTransfer(prepared.peer, number, head, Pieces(pages, copies.length), nbytes)
        start = np.frombuffer(head, np.uint8).__array_interface__["data"][0]
        address = np.concatenate(([np.uint64(start)], pages))
        length = np.concatenate(([np.uint64(len(head))], copies.length))
        return FakeTransfer(prepared.peer, number, head, Pieces(address, length), nbytes)

    def post(self, transfer: FakeTransfer) -> None:
        """Give a frame to its peer's connection."""
        outbound = self._peers.get(transfer.peer)
        if outbound is None:
            raise TransportError(f"peer {transfer.peer.name[:8]} is not known any more", quiescent=True)
        if transfer.pieces is None:
            transfer.finish()
        else:
            outbound.submit(transfer)

    def progress(self, transfers: Sequence[Transfer]) -> Iterator[TransferProgress]:
        """See ``Transport``."""
        if not self._looked:
            self._look(0.0)  # each look gives up the GIL, which a busy engine may keep for 5 ms
        self._looked = False
        self._removed = [outbound for outbound in self._removed if not outbound.idle]
        for transfer in transfers:
            assert isinstance(transfer, FakeTransfer), "made by submit()"
            if transfer.state is not TransferState.PENDING:
                yield TransferProgress(transfer, transfer.state, transfer.quiescent, transfer.error)

    def release(self, transfer: Transfer) -> None:
        """See ``Transport``: nothing is held."""

    def cancel(self, transfer: Transfer) -> None:
        """See ``Transport``. A frame that has been begun can't be taken back; it ends by itself. A read can be given up."""
        outbound = self._peers.get(transfer.peer)
        if outbound is not None and isinstance(transfer, FakeTransfer):
            outbound.cancel(transfer)

    def fence(self, peer: PeerKey) -> None:
        """See ``Transport``."""
        self._nic.fence(peer.name, peer.generation)

    def probe(self, peer: PeerKey) -> bool:
        """See ``Transport``."""
        outbound = self._peers.get(peer)
        if outbound is None:
            return False
        where = outbound.descriptor
        greeting = Preamble(where.token, self.context.instance_id, peer.generation, Purpose.PROBE, 0)
        try:
            with socket.create_connection((where.host, where.port), timeout=PROBE_S) as connection:
                connection.sendall(greeting.pack())
                return connection.recv(1) == ACCEPTED
        except (OSError, UnicodeError):  # the latter: no host name at all
            return False

    # -- the owner thread's wait -----------------------------------------------------------------------------------

    def wait(self, timeout_s: float) -> None:
        """See ``Transport``. Takes what it woke up for: what stays unread would end every further wait at once, and
        ``progress`` is not called while nothing is outstanding.
        """
        self._look(max(timeout_s, 0.0))
        self._looked = True

    def wake(self) -> None:
        """See ``Transport``."""
        try:
            self._ringer.send(b"\0")
        except BlockingIOError:
            return  # it rings already
        except OSError as error:
            if error.errno != errno.EBADF:  # closed meanwhile: nobody waits
                raise

    def _watch(self) -> None:
        """Make the selector watch the connections that there are now."""
        while not self._dead.empty():
            buried = self._dead.get()
            for outbound, watched in list(self._watched.items()):
                if watched is buried:
                    self._selector.unregister(buried)
                    del self._watched[outbound]
            buried.close()
        for outbound in self._peers.values():
            connection = outbound.connection
            if connection is not None and outbound not in self._watched and connection.fileno() >= 0:
                self._selector.register(connection, selectors.EVENT_READ, outbound)
                self._watched[outbound] = connection

    def _look(self, timeout_s: float) -> None:
        self._watch()
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                self._bell.recv(4096)
            else:
                key.data.readable(key.fileobj)

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """See ``Transport``. The NIC's port closes after its connections: a refused one proves that nothing is read."""
        if self._closed:
            return
        self._closed = True
        try:
            for outbound in [*self._peers.values(), *self._removed]:
                outbound.close()
            self._nic.close()
        finally:
            self._peers.clear()
            self._watch()
            self._selector.close()
            self._bell.close()
            self._ringer.close()
