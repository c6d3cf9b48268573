"""The closed vocabularies of the contract: values that cross the wire, label a metric or steer an engine."""

from __future__ import annotations

from enum import Enum, IntEnum


class Role(str, Enum):
    """Which side of a transfer a process is: it computes the KV cache (prefill) or generates from it (decode)."""

    PREFILL = "prefill"
    DECODE = "decode"

    @property
    def peer(self) -> Role:
        """The role of the other side."""
        return Role.DECODE if self is Role.PREFILL else Role.PREFILL


class KVPoll(IntEnum):
    """What ``poll()`` answers. The values are SGLang's (``sglang.srt.disaggregation.base.conn.KVPoll``)."""

    Failed = 0
    Bootstrapping = 1
    WaitingForInput = 2
    Transferring = 3
    Success = 4

    @property
    def terminal(self) -> bool:
        """True for the two states that never change again."""
        return self in (KVPoll.Failed, KVPoll.Success)


class MemoryKind(str, Enum):
    """Where a pool's buffers live."""

    HOST = "host"
    CUDA = "cuda"
    ROCM = "rocm"


class Direction(str, Enum):
    """Who moves the bytes: the prefill side writes (push) or the decode side reads (pull)."""

    WRITE = "write"
    READ = "read"


class ThreadingModel(str, Enum):
    """Which threads may call a transport; core obeys it, the transport never has to lock.

    OWNER: no two calls at the same time, except ``wake``. The constructor and the first ``register_memory`` and
    ``local_descriptor`` come from the thread that creates the manager; from then on one thread makes every call. No call
    may wait for bytes.
    BLOCKING: as OWNER, but ``submit`` may block for as long as the bytes take, and may be called for *different* peers
    from different threads at once (core gives each peer a thread of its own).
    """

    OWNER = "owner"
    BLOCKING = "blocking"


class Capability(str, Enum):
    """What a backend can do beyond the required methods. Features ask for these, never for a backend's name."""

    WRITE = "write"  # one-sided writes into the peer's memory (push)
    READ = "read"  # one-sided reads from the peer's memory (pull)
    AUX = "aux"  # auxiliary rows travel with the pages; without it core carries them over the control channel
    STATE = "state"  # pools beyond KV and auxiliary rows
    CUDA = "cuda"  # pools in CUDA memory
    ROCM = "rocm"  # pools in ROCm memory
    CANCEL = "cancel"  # Transport.cancel ends a transfer early and then reports it quiescent
    FENCE = "fence"  # Transport.fence proves that a peer can write (direction READ: read) nothing here any more
    PROBE = "probe"  # Transport.probe tells whether a peer can be reached through the fabric
    ENGINE_LATENCY = "engine_latency"  # progress records carry the engine's own wire_seconds
    EMBEDDED = "embedded"  # needs no hardware, no engine and no service: fit for demos and tests


class DigestMode(str, Enum):
    """Whether both ends hash each room's bytes and compare: never, for one room in N, for every room."""

    OFF = "off"
    SAMPLED = "sampled"
    ALL = "all"


class FailureStage(str, Enum):
    """Where in its life a room failed."""

    BOOTSTRAP = "bootstrap"
    HANDSHAKE = "handshake"
    QUEUED = "queued"
    TRANSFER = "transfer"
    DRAIN = "drain"
    INTEGRITY = "integrity"


class FailureCode(str, Enum):
    """Why a room failed: a closed set, fit for a metric's label."""

    TIMEOUT = "timeout"
    PEER_LOST = "peer_lost"
    PEER_REPLACED = "peer_replaced"
    ABORTED_LOCAL = "aborted_local"
    ABORTED_REMOTE = "aborted_remote"
    TRANSPORT_ERROR = "transport_error"
    INCOMPATIBLE = "incompatible"
    DUPLICATE_ROOM = "duplicate_room"
    UNKNOWN_ROOM = "unknown_room"
    INVALID_REQUEST = "invalid_request"
    INTEGRITY = "integrity"
    OVERLOADED = "overloaded"
    CLOSED = "closed"


class Side(str, Enum):
    """Who is at fault, as far as is known."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOOTSTRAP = "bootstrap"
    FABRIC = "fabric"
    UNKNOWN = "unknown"

    @staticmethod
    def of(role: Role) -> Side:
        """The side that a role is."""
        return Side.PREFILL if role is Role.PREFILL else Side.DECODE


class Liveness(str, Enum):
    """What is believed of a peer: ok; suspect (gets no new rooms); dead (its rooms fail)."""

    OK = "ok"
    SUSPECT = "suspect"
    DEAD = "dead"


class TransferState(str, Enum):
    """State of one submitted transfer."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
