"""The transport contract: what a backend writes. A transport only moves bytes; core owns everything else.

Life of a transport: constructed -> ``register_memory`` -> ``local_descriptor`` -> for each peer ``add_peer``,
``prepare``, any number of ``submit`` / ``progress`` / ``release``, ``remove_peer`` -> ``deregister_memory`` -> ``close``.

**Threads.** The transport declares its ``threading`` model (see ``ThreadingModel``) and core obeys it, so a transport
needs no lock for what core calls. ``wake`` alone may be called from any thread at any time.

**Quiescence.** A transfer is quiescent when no byte of it can still land (write) or still be read (read), whatever
happens from now on. DONE implies quiescent. FAILED does *not*: a transport that can't be certain says
``quiescent=False`` and keeps reporting the transfer until it is certain. Timeouts, error codes, aborts and releases
are no proof. Pages are reused on the strength of this one bit. That the peer's process has ended is core's to prove,
where it can be proven (same host): a transport need not look for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from kv_core.contract.enums import Direction, Role, ThreadingModel, TransferState
from kv_core.contract.failures import NotSupported

if TYPE_CHECKING:
    from kv_core.contract.config import TransferConfig
    from kv_core.contract.memory import Region

U64 = npt.NDArray[np.uint64]
"""Array of addresses, offsets, lengths, indices: addresses have all 64 bits (sglang #24188), so never int64."""


class PeerKey(NamedTuple):
    """Who a transport talks to: ``name`` is the peer process's instance id, ``generation`` grows with each handshake."""

    name: str
    generation: int


@dataclass(frozen=True)
class PoolPlan:
    """How the items of one pool map onto the peer's pool of the same name. All arrays have one entry per *lane*.

    Item i here and item j there have these bytes to do with each other, for every lane k and every r in
    ``range(inner_count[k])``::

        length[k] bytes at local_region[k]  : local_offset[k]  + i * local_stride[k]  + r * local_inner_stride[k]
                      and  remote_region[k] : remote_offset[k] + j * remote_stride[k] + r * remote_inner_stride[k]

    With equal topologies a lane is a buffer: offsets 0, strides and length the item length, ``inner_count`` 1.
    ``layer`` is int64, regions are indices into the plan's region tuples, the rest is uint64 (bytes).

    With unequal page sizes the larger page is ``local_ratio`` or ``remote_ratio`` times the smaller one (the other ratio
    is 1). Where the larger pages' bytes allow it, items are the smaller pages on both sides: item ``page * ratio + part``.
    Else items are pages and there are ``phases`` (= the ratio) sets of lanes, one set after the other: those of set j go
    with the pairs whose smaller page is the j-th part of the larger one. All of this is done before a transport sees a
    batch: its lanes and items are as the formula says.
    """

    pool: str
    layer: npt.NDArray[np.int64]
    local_region: U64
    remote_region: U64
    local_offset: U64
    remote_offset: U64
    local_stride: U64
    remote_stride: U64
    length: U64
    inner_count: U64
    local_inner_stride: U64
    remote_inner_stride: U64
    local_ratio: int = 1
    remote_ratio: int = 1
    phases: int = 1

    @property
    def num_lanes(self) -> int:
        """Number of lanes."""
        return int(self.length.shape[0])


@dataclass(frozen=True)
class TransferPlan:
    """What two sides' layouts have to do with each other: made once when they meet, given to ``prepare``.

    ``local_regions`` and ``remote_regions`` are each side's buffers in canonical order, with addresses (an engine of
    offsets ignores those of the remote side).
    """

    pools: tuple[PoolPlan, ...]
    local_regions: tuple[Region, ...]
    remote_regions: tuple[Region, ...]


class PoolSlice(NamedTuple):
    """Part of a batch: these items of one pool, on these lanes (indices into the ``PoolPlan``'s arrays).

    ``local_items`` and ``remote_items`` are uint64 arrays of one length; entry n of one goes with entry n of the other.
    """

    plan: PoolPlan
    lanes: npt.NDArray[np.intp]
    local_items: U64
    remote_items: U64


class CopyList(NamedTuple):
    """The flat view of a batch: five uint64 arrays of one length, runs that touch on both sides already merged."""

    local_region: U64
    local_offset: U64
    remote_region: U64
    remote_offset: U64
    length: U64

    def cut(self, longest: int) -> CopyList:
        """The same bytes in copies of at most ``longest`` bytes each, in the same order; itself if all are that short."""
        most = np.uint64(longest)
        pieces = ((self.length + (most - np.uint64(1))) // most).astype(np.intp)
        if bool((pieces <= 1).all()):
            return self
        whole = np.repeat(np.arange(len(pieces)), pieces)
        done = (np.arange(len(whole)) - np.repeat(np.cumsum(pieces) - pieces, pieces)).astype(np.uint64) * most
        return CopyList(
            self.local_region[whole], self.local_offset[whole] + done, self.remote_region[whole],
            self.remote_offset[whole] + done, np.minimum(self.length[whole] - done, most),
        )  # fmt: skip


class TransferBatch(ABC):
    """What one ``submit`` moves: KV, state and auxiliary items together. Made by core; read by the transport."""

    @property
    @abstractmethod
    def slices(self) -> tuple[PoolSlice, ...]:
        """The index form, for engines with prepared descriptor lists."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the batch moves."""

    @property
    @abstractmethod
    def num_descriptors(self) -> int:
        """Number of copies before merging; at most ``TransferConfig.max_batch_descriptors`` unless one item needs more."""

    @abstractmethod
    def copies(self) -> CopyList:
        """The flat form, coalesced. Computed at each call: call it once."""


class Prepared:
    """What ``prepare`` returns; a transport may derive from it to keep descriptor lists. Ends with its peer."""

    def __init__(self, peer: PeerKey, plan: TransferPlan) -> None:
        self.peer = peer
        self.plan = plan


class Transfer:
    """One submission. A transport may derive from it; core compares transfers by identity only."""

    __slots__ = ("nbytes", "peer")

    def __init__(self, peer: PeerKey, nbytes: int) -> None:
        self.peer = peer
        self.nbytes = nbytes


class TransferProgress(NamedTuple):
    """How a transfer is going. ``error`` is a sentence for FAILED; ``wire_seconds`` the engine's own time, or None."""

    transfer: Any
    state: TransferState
    quiescent: bool
    error: str | None = None
    wire_seconds: float | None = None


@dataclass(frozen=True)
class TransportContext:
    """What core hands to a transport's constructor.

    ``instance_id`` is unique to this manager in the whole world and for ever; ``advertised_host`` is what peers can
    reach. ``config.options`` holds the backend's own settings.
    """

    role: Role
    instance_id: str
    config: TransferConfig
    direction: Direction = Direction.WRITE

    @property
    def advertised_host(self) -> str:
        """Host name or address that peers are told."""
        return self.config.advertised_host or self.config.host


class Transport(ABC):
    """Moves bytes between this process's registered memory and its peers'.

    Every method may raise ``TransportError`` (or one of its kin) and nothing else on purpose; anything else that
    escapes is taken as a ``TransportError`` that is not quiescent.

    Before it loads the engine the constructor raises ``InvalidConfig`` for an option that it does not know, and ``NotSupported``
    for a direction that the backend does not declare: ``NotSupported("reading from a peer (pull)", "read")``.
    """

    threading: ClassVar[ThreadingModel] = ThreadingModel.OWNER

    staging_below: ClassVar[int] = 0
    """Bytes of a piece below which many pieces cost more than copying them together and moving long runs, as measured
    (``docs/topologies.md``); 0: they never do. Core then stages in memory of its own, for which it calls ``register_memory`` once more,
    before ``prepare``, on the side that moves the bytes: peers need not reach it. In the plan it is one more region behind the
    rank's own, with a pool named after the staged one, of which items are rows of that region.
    """

    def __init__(self, context: TransportContext) -> None:
        self.context = context

    @abstractmethod
    def register_memory(self, regions: Sequence[Region]) -> None:
        """Make ``regions`` reachable, all or none: on an error what this call registered is taken back first.

        Raises ``RegistrationError`` with the position in ``regions`` and the system's errno. Registering a region's
        exact range twice, or overlapping ranges, is allowed; each is deregistered on its own. Host regions are mapped:
        core has looked.
        """

    @abstractmethod
    def deregister_memory(self, regions: Sequence[Region]) -> None:
        """Undo ``register_memory`` for these regions; unknown ones are ignored. Called only when they are quiescent."""

    @abstractmethod
    def local_descriptor(self) -> bytes:
        """Opaque bytes by which a peer's ``add_peer`` reaches the memory registered so far. At most 1 MiB."""

    @abstractmethod
    def add_peer(self, peer: PeerKey, descriptor: bytes) -> None:
        """Get to know a peer. Core adds each (name, generation) once, none that is older than one it added before, and
        removes the older one first: there is one peer of a name at a time, besides what is outstanding to earlier ones.

        ``descriptor`` comes from the network: check it. Raises ``TransportError`` if it makes no sense.
        """

    @abstractmethod
    def remove_peer(self, peer: PeerKey) -> None:
        """Forget a peer: submissions to it are refused at once and what was prepared for it ends. Outstanding transfers
        to it stay in ``progress`` until they are quiescent. An unknown peer is ignored.
        """

    @abstractmethod
    def prepare(self, peer: PeerKey, plan: TransferPlan) -> Prepared:
        """Work out once what the peers' layouts have to do with each other (descriptor lists, sessions)."""

    @abstractmethod
    def submit(self, prepared: Prepared, batch: TransferBatch) -> Transfer:
        """Post one-sided copies and return without waiting for the bytes (``BLOCKING`` transports may wait).

        WRITE moves local to remote, READ remote to local, by the context's direction. On an exception nothing was
        posted, unless it is a ``TransportError`` with ``quiescent=False``. An empty batch is done at once.
        """

    @abstractmethod
    def progress(self, transfers: Sequence[Transfer]) -> Iterable[TransferProgress]:
        """Drive the engine and tell how these transfers are going. Never waits; PENDING ones may be left out.

        A FAILED transfer is reported again on each call until its record says quiescent.
        """

    @abstractmethod
    def release(self, transfer: Transfer) -> None:
        """Give back what a transfer holds. Called once: after its record said quiescent, after core has proven that the
        process of a failed transfer's peer has ended, or at ``close``.
        """

    @abstractmethod
    def describe(self, peer: PeerKey) -> str:
        """The fabric really in use to this peer, in a word or two ("tcp", "rdma mlx5_0", "cma"). After ``prepare``.

        ``TransferConfig.require_transport`` is held against these words; "rdma or xgmi" says that it is one of the two.
        """

    @abstractmethod
    def wait(self, timeout_s: float) -> None:
        """Block the owner thread (the GIL released, no busy loop) until a transfer may have moved on, ``wake`` was
        called since the last ``wait`` returned, or ``timeout_s`` seconds have passed.
        """

    @abstractmethod
    def wake(self) -> None:
        """Make a current or the next ``wait`` return at once. Any thread, any time, cheap, never blocks."""

    @abstractmethod
    def close(self) -> None:
        """End every thread, close every descriptor, forget every peer. Idempotent. Nothing is called afterwards but
        ``wake``. After it returned no peer can write or read memory that was registered here, if FENCE is declared.
        """

    def fabrics(self) -> tuple[str, ...]:
        """What ``describe`` may answer, as far as the settings and the machine decide it; empty: not known before there is a
        peer. Asked once, after the constructor: none of it meets ``require_transport``, and the manager is not made.
        """
        return ()

    def cancel(self, transfer: Transfer) -> None:
        """Ask for an early end; ``progress`` then reports it FAILED, and quiescent as soon as that is certain (CANCEL)."""
        raise NotSupported("cancel", "cancel")

    def fence(self, peer: PeerKey) -> None:
        """Return only when no byte from this generation of the peer, or an earlier one, can land here any more (FENCE).

        With direction READ: when no byte here can be read by it any more.
        """
        raise NotSupported("fence", "fence")

    def probe(self, peer: PeerKey) -> bool:
        """Whether the peer can be reached through the fabric now; may take a second; never raises (PROBE)."""
        raise NotSupported("probe", "probe")
