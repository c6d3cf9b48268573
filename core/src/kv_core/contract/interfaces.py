"""What an engine calls: managers, senders and receivers.

Threads: a manager's methods may be called from any thread; a handle's from one thread at a time. No method waits for
the network or for bytes, except ``create_manager`` (registers memory) and ``close``. For a room's sake nothing here
raises: a request that can't work is a failed room with a typed reason.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy.typing as npt

from kv_core.contract.enums import KVPoll
from kv_core.contract.failures import Failure, KVTransferError, NotPicklable
from kv_core.contract.records import KVTransferMetric

if TYPE_CHECKING:
    from typing_extensions import Self

Indices: TypeAlias = npt.NDArray[Any] | Sequence[int]
"""Item indices: a one-dimensional array of an integer dtype (or a list of ints); values in 0..num_items-1."""


class Ready(Protocol):
    """Anything with CUDA-event manners: ``query()`` says without blocking whether the source may be read now."""

    def query(self) -> bool:
        """True once everything recorded before is complete."""
        ...


class _Unpicklable:
    def __reduce__(self) -> Any:
        raise NotPicklable(
            f"{type(self).__name__} can't be pickled: it holds threads, sockets and registered memory of this process. "
            "Pickle KVArgs and TransferConfig instead, and create the manager in the process that uses it"
        )


class BaseKVHandle(_Unpicklable, ABC):
    """What a sender and a receiver have in common: one room on one rank."""

    @abstractmethod
    def poll(self) -> KVPoll:
        """The room's state. Reads one attribute: never blocks, never raises; Failed and Success never change."""

    @abstractmethod
    def get_transfer_metric(self) -> KVTransferMetric:
        """What the transfer cost; fields are None until known, and for ever on a room that failed."""

    @abstractmethod
    def failure(self) -> Failure | None:
        """The room's first root cause, or None."""

    @abstractmethod
    def abort(self, reason: str = "") -> None:
        """Fail the room now (code aborted_local), tell the other side, and let outstanding writes drain."""

    @abstractmethod
    def is_release_safe(self) -> bool:
        """Whether this room's pages may be reused: the room has ended *and* it is proven that nothing can write
        (receiver) or read (sender) them any more. The only permission there is; stays live after ``clear()``.
        """

    @abstractmethod
    def clear(self) -> None:
        """Drop the room (aborting it if it is live). Idempotent. Outstanding transfers live on in the manager's ledger;
        this handle keeps its final state, failure and metric, and a live ``is_release_safe()``.
        """

    def failure_exception(self) -> None:
        """Raise ``KVTransferError`` with the room's failure; return if there is none."""
        failure = self.failure()
        if failure is not None:
            raise KVTransferError(self.room, failure)

    @property
    @abstractmethod
    def room(self) -> int:
        """The bootstrap_room that this handle was created for."""


class BaseKVSender(BaseKVHandle):
    """The prefill side of one room."""

    @abstractmethod
    def init(self, num_kv_indices: int, aux_index: int | None = None) -> None:
        """Announce how many KV pages this rank will send in all (0: decode has the whole prefix) and the auxiliary row.

        These are the rank's own pages from position ``decode_prefix_len`` of the prompt on, which is known from
        WaitingForInput on; of ``cp_size`` context-parallel ranks each has every ``cp_size``-th page. With equal pages on
        both sides it is the number of pages that decode named; else both must be of one prompt, or the room fails. Ranks
        that serve no decode rank, or whose row another rank sends, call it all the same.
        """

    @abstractmethod
    def send(
        self,
        kv_indices: Indices,
        *,
        state_indices: Mapping[str, Indices] | None = None,
        layers: range | None = None,
        ready: Ready | None = None,
    ) -> None:
        """Hand over one chunk: the next ``len(kv_indices)`` pages, on all layers or on a range of them. Never blocks.

        Pages are counted per layer: a chunk continues, on each of its layers, where that layer's last chunk ended.
        The room ends when every layer has all announced pages; the auxiliary row goes with the chunk that completes
        it. ``ready`` is asked before the source is read. With 0 announced pages one empty send completes the room.
        ``kv_indices`` is copied.
        """

    @property
    @abstractmethod
    def decode_prefix_len(self) -> int:
        """Pages of the prompt, as large as this side's, that the decode side already has whole; 0 before WaitingForInput."""


class BaseKVReceiver(BaseKVHandle):
    """The decode side of one room."""

    @abstractmethod
    def init(self, prefill_dp_rank: int = 0) -> None:
        """Start finding the prefill ranks and shaking hands with them."""

    @abstractmethod
    def send_metadata(
        self,
        kv_indices: Indices,
        *,
        aux_index: int | None = None,
        state_indices: Mapping[str, Indices] | None = None,
        decode_prefix_len: int = 0,
    ) -> None:
        """Name the pages that the prompt's KV goes to. From now on they may be written until ``is_release_safe()``.

        ``decode_prefix_len``: leading pages of the prompt that are here already and not among ``kv_indices``: pages of this
        side's size, those of the other context-parallel ranks included.
        """


class BaseKVManager(_Unpicklable, ABC):
    """One per rank and process: owns the transport, the sockets, the threads and all rooms of the rank."""

    @abstractmethod
    def create_sender(
        self, bootstrap_addr: str, bootstrap_room: int, *, traceparent: str | None = None
    ) -> BaseKVSender:
        """Open a room on the prefill side.

        ``traceparent``: the request's trace (W3C Trace Context), for observers on both sides: the other side uses it where
        its engine names none. One that is malformed is ignored and counted: a bad header fails no room.
        """

    @abstractmethod
    def create_receiver(
        self, bootstrap_addr: str, bootstrap_room: int, *, traceparent: str | None = None
    ) -> BaseKVReceiver:
        """Open a room on the decode side. ``bootstrap_addr`` is the prefill instance's ``host:port``; ``traceparent`` as
        for ``create_sender``.
        """

    @abstractmethod
    def snapshot(self) -> dict[str, Any]:
        """Counts of live rooms, leases, peers, transfers and queues (all 0 at rest) and the quarantined pages."""

    @abstractmethod
    def health(self) -> dict[str, Any]:
        """Each thread: alive, seconds since its last progress, exceptions survived."""

    @abstractmethod
    def close(self) -> None:
        """End every room (code closed), join every thread, close every socket, deregister the memory. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
