"""What a bootstrap server remembers: which ranks are registered, and which data-parallel rank a room goes to.

Pure: the time comes in as monotonic seconds, and nothing here does I/O. Not thread-safe: the server's thread owns it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice, product
from math import prod

import msgspec

from kv_core.contract.failures import KVCoreError
from kv_core.runtime.bootstrap.routes import (
    MAX_AGE_S,
    MAX_VERSIONS,
    HealthReport,
    PrefillServerInfo,
    RankEntry,
    RankHealth,
    RankRegistration,
    Ranks,
    Refusal,
    Shape,
)

MAX_MISSING_SHOWN = 64
"""Missing ranks that an answer lists; it always tells how many there are."""
MAX_SUPERSEDED = 16
"""Replaced instances that a rank's entry remembers."""
MAX_ROOMS = 262_144
"""Rooms with a data-parallel rank that are remembered at a time."""


class RequestRefused(KVCoreError):
    """A request that is answered with an HTTP error: its status and what the client is told."""

    def __init__(self, status: int, body: Refusal) -> None:
        super().__init__(f"{status}: {body.error}")
        self.status = status
        self.body = body

    @classmethod
    def because(cls, status: int, sentence: str) -> RequestRefused:
        """A refusal with nothing but a sentence."""
        return cls(status, Refusal(sentence))


class _Entry(msgspec.Struct):
    registration: RankRegistration
    renewed_s: float
    superseded: tuple[str, ...] = ()


class RouteTable:
    """The registered ranks of one prefill instance.

    The first rank to register sets the shape (sizes, page size, dtype, layout, backend, protocol version); another
    shape is refused until every rank of this one has lapsed or said goodbye. ``version`` grows whenever a rank's
    address or instance changes, never at a renewal.
    """

    def __init__(self, ttl_s: float) -> None:
        self.version = 0
        self._ttl_s = ttl_s
        self._shape: Shape | None = None
        # In the order of the last renewal, oldest first, so that expiry looks at no more than it removes.
        self._entries: OrderedDict[Ranks, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def ready(self) -> bool:
        """Whether the set of registered ranks is complete."""
        # Every key was checked against the sizes, so a set of this length is the whole set.
        return self._shape is not None and len(self._entries) == prod(self._shape.sizes)

    @property
    def dp_size(self) -> int | None:
        """Data-parallel size, once a rank has registered."""
        return None if self._shape is None else self._shape.sizes[3]

    def put(self, registration: RankRegistration, now: float) -> None:
        """Register or renew one rank.

        Raises ``RequestRefused`` (409) if the shape differs from that of the ranks that are alive, or if this instance
        was replaced by a newer one that is alive.
        """
        self.expire(now)
        if self._shape is not None and registration.shape != self._shape:
            raise RequestRefused.because(
                409,
                "another prefill instance is registered at this address and alive; these fields differ: "
                + "; ".join(self._shape.differences(registration.shape))
                + f". Use another bootstrap server, or wait {self._ttl_s:g} s after the old instance's end",
            )
        entry = self._entries.get(registration.ranks)
        superseded: tuple[str, ...] = ()
        if entry is not None:
            old = entry.registration
            superseded = entry.superseded
            if registration.instance_id in superseded:
                # Two processes that both believe to be this rank would replace each other at every renewal.
                raise RequestRefused.because(
                    409,
                    f"rank (tp, pp, cp, dp) {registration.ranks} was taken over by the newer instance "
                    f"{old.instance_id}, which is alive; the instance {registration.instance_id} should end",
                )
            if old.instance_id != registration.instance_id:
                superseded = (*superseded, old.instance_id)[-MAX_SUPERSEDED:]
        if entry is None or _address(entry.registration) != _address(registration):
            self.version += 1
        self._shape = registration.shape
        self._entries[registration.ranks] = _Entry(registration, now, superseded)
        self._entries.move_to_end(registration.ranks)

    def remove(self, instance_id: str, now: float) -> int:
        """Forget every rank of this instance; returns how many there were."""
        self.expire(now)
        gone = [key for key, entry in self._entries.items() if entry.registration.instance_id == instance_id]
        for key in gone:
            self._drop(key)
        return len(gone)

    def expire(self, now: float) -> int:
        """Forget the ranks that were not renewed within the TTL; returns how many there were."""
        count = 0
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if now - entry.renewed_s <= self._ttl_s:
                break
            self._drop(key)
            count += 1
        return count

    def rank(self, key: Ranks) -> RankRegistration:
        """One rank's registration. Raises ``RequestRefused``: 503 until every rank is there, 404 for an unknown rank."""
        self.require_ready()
        entry = self._entries.get(key)
        if entry is None:
            sizes = None if self._shape is None else self._shape.sizes
            raise RequestRefused.because(404, f"there is no rank (tp, pp, cp, dp) {key}; the sizes are {sizes}")
        return entry.registration

    def info(self, server_instance: str) -> PrefillServerInfo:
        """The whole instance. Raises ``RequestRefused`` (503) with the missing ranks until every rank is there."""
        shape = self.require_ready()
        tp, pp, cp, dp = shape.sizes
        return PrefillServerInfo(
            attn_tp_size=tp,
            attn_cp_size=cp,
            dp_size=dp,
            pp_size=pp,
            page_size=shape.page_size,
            kv_cache_dtype=shape.kv_cache_dtype,
            kv_layout=shape.kv_layout,
            backend=shape.backend,
            protocol_version=shape.protocol_version,
            server_instance=server_instance,
            ranks=[_entry_of(self._entries[key].registration) for key in sorted(self._entries)],
            versions=self._versions()[:MAX_VERSIONS],
        )

    def _versions(self) -> list[tuple[str, str]]:
        told = (entry.registration for entry in self._entries.values())
        return sorted({(rank.core_version, rank.backend_version) for rank in told if rank.core_version})

    def require_ready(self) -> Shape:
        """The shape. Raises ``RequestRefused`` (503) with the missing ranks until every rank is there."""
        if self._shape is None:
            raise RequestRefused.because(503, "no prefill rank is registered here yet; try again")
        if self.ready:
            return self._shape
        absent = list(islice(self._absent(self._shape.sizes), MAX_MISSING_SHOWN))
        count = prod(self._shape.sizes) - len(self._entries)
        shown = ", ".join(map(str, absent[:8])) + (", ..." if count > 8 else "")
        raise RequestRefused(
            503,
            Refusal(
                f"{count} of {prod(self._shape.sizes)} prefill ranks (tp, pp, cp, dp) are missing: {shown}; try again",
                missing_ranks=absent,
                missing_count=count,
            ),
        )

    def health(self, server_instance: str, now: float) -> HealthReport:
        """What ``GET /health`` answers."""
        ranks = []
        for key, entry in self._entries.items():
            age = max(0.0, now - entry.renewed_s)
            progress = min(entry.registration.progress_age_s + age, MAX_AGE_S)
            ranks.append(RankHealth(key, entry.registration.instance_id, age, progress))
        return HealthReport("ok" if self.ready else "waiting", server_instance, self.ready, ranks)

    def _absent(self, sizes: Ranks) -> Iterator[Ranks]:
        tp, pp, cp, dp = (range(size) for size in sizes)
        return (key for key in product(tp, pp, cp, dp) if key not in self._entries)

    def _drop(self, key: Ranks) -> None:
        del self._entries[key]
        self.version += 1
        if not self._entries:
            self._shape = None


class DpRankTable:
    """Which data-parallel rank a router chose for a room: bounded, and forgotten after ``ttl_s``."""

    def __init__(self, ttl_s: float, max_rooms: int = MAX_ROOMS) -> None:
        self._ttl_s = ttl_s
        self._max_rooms = max_rooms
        self._rooms: OrderedDict[int, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rooms)

    def put(self, room: int, dp_rank: int, now: float) -> None:
        """Remember a room's rank; the latest word counts. Raises ``RequestRefused`` (429) when the table is full."""
        if room not in self._rooms and len(self._rooms) >= self._max_rooms:
            self.expire(now)
            if len(self._rooms) >= self._max_rooms:
                raise RequestRefused.because(
                    429,
                    f"{self._max_rooms} rooms are registered, which is the limit; "
                    f"each is forgotten {self._ttl_s:g} s after its registration: try again later",
                )
        self._rooms[room] = (dp_rank, now)
        self._rooms.move_to_end(room)

    def query(self, rooms: list[int], now: float) -> dict[str, int]:
        """The ranks of those rooms that are known."""
        self.expire(now)
        return {str(room): self._rooms[room][0] for room in rooms if room in self._rooms}

    def expire(self, now: float) -> int:
        """Forget what is older than the TTL; returns how many rooms that were."""
        count = 0
        while self._rooms and now - next(iter(self._rooms.values()))[1] > self._ttl_s:
            self._rooms.popitem(last=False)
            count += 1
        return count


def _address(registration: RankRegistration) -> tuple[str, str, int]:
    return (registration.instance_id, registration.rank_ip, registration.rank_port)


def _entry_of(registration: RankRegistration) -> RankEntry:
    tp, pp, cp, dp = registration.ranks
    return RankEntry(tp, pp, cp, dp, registration.rank_ip, registration.rank_port, registration.instance_id)
