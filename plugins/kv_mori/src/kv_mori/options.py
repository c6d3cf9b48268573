"""``TransferConfig.options`` of this backend, checked before the engine sees them: it ends the process over some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from kv_core import InvalidConfig

FABRICS = ("rdma", "xgmi", "rdma+xgmi")
CQ_MODES = ("polling", "event")
LOG_LEVELS = ("trace", "debug", "info", "warn", "error", "critical", "off")


@dataclass(frozen=True)
class MoriOptions:
    """Settings of one engine. The fields of ``RdmaBackendConfig`` and ``XgmiBackendConfig`` have MORI's names; where the
    defaults differ from MORI's they are those that SGLang runs in production (4 queue pairs, 4 workers).

    fabric: which of MORI's backends to create; XGMI carries GPU memory inside one node only. max_outstanding: work
    requests in flight to one peer; more are held back here, for a full send queue would block the caller for seconds.
    It must not exceed the depth of one queue pair (MORI asks the device for 8,192, MORI_IO_QP_MAX_SEND_WR changes
    that). control_host: IPv4 address of this machine for MORI's control port, which peers connect to (None: what
    ``TransferConfig`` advertises). log_level: of MORI's own log.

    Notifications to the target are always off: core's control channel tells the other side.
    """

    fabric: str = "rdma"
    qp_per_transfer: int = 4
    post_batch_size: int = -1
    num_worker_threads: int = 4
    poll_cq_mode: str = "polling"
    enable_transfer_chunking: bool = False
    chunk_bytes: int = 65_536
    max_chunks_per_transfer: int = 64
    num_nics_per_transfer: int = 1
    num_streams: int = 64
    num_events: int = 64
    max_outstanding: int = 8_192
    control_host: str | None = None
    log_level: str = "error"

    def __post_init__(self) -> None:
        for name, allowed in (("fabric", FABRICS), ("poll_cq_mode", CQ_MODES), ("log_level", LOG_LEVELS)):
            if getattr(self, name) not in allowed:
                raise InvalidConfig(
                    f"option {name!r} of kv-mori is {getattr(self, name)!r}, must be one of {', '.join(allowed)}"
                )
        for name in _COUNTS:
            value, least = getattr(self, name), _LEAST.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31 or value == 0:
                raise InvalidConfig(
                    f"option {name!r} of kv-mori is {value!r}, must be a whole number from {least} on, and not 0"
                )
        for name, kinds in (("enable_transfer_chunking", bool), ("control_host", (str, type(None)))):
            if not isinstance(getattr(self, name), kinds):
                raise InvalidConfig(
                    f"option {name!r} of kv-mori is {getattr(self, name)!r}, which is of the wrong type"
                )

    @classmethod
    def parse(cls, options: Mapping[str, object]) -> MoriOptions:
        """From ``TransferConfig.options``. Raises ``InvalidConfig`` for unknown keys and values that can't work."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(str(key) for key in options if key not in known)
        if unknown:
            raise InvalidConfig(f"kv-mori has no option {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**dict(options))  # type: ignore[arg-type]


_COUNTS = (
    "qp_per_transfer", "num_worker_threads", "chunk_bytes", "max_chunks_per_transfer", "num_nics_per_transfer",
    "num_streams", "num_events", "max_outstanding", "post_batch_size",
)  # fmt: skip
_LEAST = {"chunk_bytes": 4_096, "post_batch_size": -1}  # -1: automatic
