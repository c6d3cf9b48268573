"""``TransferConfig``: every setting of a manager, with its unit and its default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kv_core.contract.enums import DigestMode, Direction
from kv_core.contract.fabrics import required_fabrics
from kv_core.contract.failures import InvalidConfig

MAX_ROOM = 2**63 - 1
"""Largest bootstrap_room (routers draw them as non-negative signed 64-bit numbers)."""
FAKE_BOOTSTRAP_HOST = "2.2.2.2"
"""Bootstrap host of warm-up requests (SGLang's value): such rooms move nothing and get core's null pair."""

MIN_HISTORY = 8
"""A shorter history than this could not show where a room came from and how it ended."""


@dataclass(frozen=True)
class TransferConfig:
    """Settings of one manager. Durations in seconds, sizes in bytes. Survives pickling.

    Addresses
        bootstrap_addr: ``host:port`` of this prefill instance's bootstrap server (prefill; None: it is taken from the
            first ``create_sender``). host: interface that the control socket and the transport bind.
            advertised_host: what peers are told (None: host). control_port: 0 takes a free one.
    Deadlines
        bootstrap_timeout_s: from opening a room until its peers are known and the handshake passed (decode), or until
            the decode side spoke of the room (prefill). waiting_timeout_s: from there until both sides have named
            their pages. transferring_timeout_s: longest time a room may move bytes without progress.
            draining_timeout_s: how long an ended room waits for outstanding writes before its pages are quarantined.
            close_timeout_s: how long ``close()`` waits for outstanding writes. lease_s: how long one sign of interest of the other side keeps a queued room alive.
    Liveness
        probe_interval_s between probes; suspect_after / dead_after: missed probes until a peer is suspect / dead.
    Bounds (a typed refusal, code ``overloaded``, at each)
        max_rooms, max_inbox (early requests of peers), max_tombstones, max_indices (per request and pool),
        max_message_bytes (one control frame), max_peers.
    Work
        queue_shards: number of transfer queues (None: min(max(4, cpus // 16), 12), capped by the usable cpus).
        max_batch_descriptors: copies posted at once; window_bytes: bytes in flight to one peer.
        staging_bytes: host memory of which the side that moves the bytes makes small pieces into long copies, or long copies
            into small pieces, where the backend says that this is faster and the shapes of both sides allow it
            (docs/topologies.md). Taken when the first such peer is met. 0: pieces are moved as they are.
        direction: who moves the bytes: ``Direction.WRITE``, prefill writes into decode's pages (push); ``Direction.READ``, decode
            reads prefill's (pull). None: WRITE if the backend declares it, else READ. One that it does not declare: ``NotSupported``
            when the manager is made. Both sides must have the same one: the handshake refuses others.
        digest, digest_sample: verify one room in N.
        switch_interval_s: ``sys.setswitchinterval`` to set while a manager is open (None: leave it; 0.0005 cuts the
            latency of a room by 3 to 4 in an engine whose scheduler thread is busy).
    Observation
        flight_recorder: moments kept of each room's history, the first and the last ones; what is between them is counted.
            0: none, and failed rooms are not logged.
    Backend
        require_transport: the fabric that has to be in use, by the words that the backend has for it ("rdma", "cma", "tcp":
            ``Transport.describe``), in upper or lower case; several: one of them. Where the backend knows at the start that
            it can't be, ``create_manager`` raises ``InvalidConfig``; a peer that is reached in another way is refused before
            a byte moves, and its rooms fail (handshake, incompatible). None: whatever there is.
        options: handed to the transport as they are (each backend documents its own).
    """

    bootstrap_addr: str | None = None
    host: str = "127.0.0.1"
    advertised_host: str | None = None
    control_port: int = 0

    bootstrap_timeout_s: float = 300.0
    waiting_timeout_s: float = 300.0
    transferring_timeout_s: float = 300.0
    draining_timeout_s: float = 30.0
    close_timeout_s: float = 5.0
    lease_s: float = 30.0

    probe_interval_s: float = 1.0
    suspect_after: int = 2
    dead_after: int = 5

    max_rooms: int = 65_536
    max_inbox: int = 16_384
    max_tombstones: int = 16_384
    max_indices: int = 1_048_576
    max_message_bytes: int = 32 * 1024 * 1024
    max_peers: int = 4_096

    queue_shards: int | None = None
    max_batch_descriptors: int = 4_096
    window_bytes: int = 256 * 1024 * 1024
    staging_bytes: int = 64 * 1024 * 1024
    direction: Direction | None = None
    digest: DigestMode = DigestMode.OFF
    digest_sample: int = 64
    switch_interval_s: float | None = None

    flight_recorder: int = 64

    require_transport: str | Sequence[str] | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", DigestMode(self.digest))
        if self.direction is not None:
            object.__setattr__(self, "direction", _direction(self.direction))
        object.__setattr__(self, "require_transport", required_fabrics(self.require_transport) or None)
        for name in _POSITIVE:
            value = getattr(self, name)
            if not value > 0:
                raise InvalidConfig(f"TransferConfig.{name} is {value!r}, must be greater than 0")
        if not 1 <= self.suspect_after < self.dead_after:
            raise InvalidConfig(
                f"TransferConfig.suspect_after ({self.suspect_after}) must be at least 1 and less than dead_after ({self.dead_after})"
            )
        if self.staging_bytes < 0:
            raise InvalidConfig(f"TransferConfig.staging_bytes is {self.staging_bytes}, must be at least 0")
        if not 0 <= self.control_port <= 65_535:
            raise InvalidConfig(f"TransferConfig.control_port is {self.control_port}, must lie in 0..65535")
        if self.flight_recorder != 0 and self.flight_recorder < MIN_HISTORY:
            raise InvalidConfig(
                f"TransferConfig.flight_recorder is {self.flight_recorder}, must be at least {MIN_HISTORY}, or 0 for none"
            )
        if self.queue_shards is not None and self.queue_shards < 1:
            raise InvalidConfig(f"TransferConfig.queue_shards is {self.queue_shards}, must be at least 1 or None")


def _direction(value: object) -> Direction:
    try:
        return Direction(value)
    except ValueError:
        raise InvalidConfig(f"TransferConfig.direction is {value!r}, must be 'write', 'read' or None") from None


_POSITIVE = (
    "bootstrap_timeout_s", "waiting_timeout_s", "transferring_timeout_s", "draining_timeout_s", "close_timeout_s", "lease_s",
    "probe_interval_s", "max_rooms", "max_inbox", "max_tombstones", "max_indices", "max_message_bytes", "max_peers",
    "max_batch_descriptors", "window_bytes", "digest_sample",
)  # fmt: skip
