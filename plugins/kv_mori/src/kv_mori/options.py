"""``TransferConfig.options`` of this backend, checked before the engine sees them: it ends the process over some."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=1, lt=2**31)]


class MoriOptions(Struct, frozen=True):
    """Settings of one engine. The fields of ``RdmaBackendConfig`` and ``XgmiBackendConfig`` have MORI's names; where the
    defaults differ from MORI's they are those that SGLang runs in production (4 queue pairs, 4 workers).

    fabric: which of MORI's backends to create; XGMI carries GPU memory inside one node only. max_outstanding: work
    requests in flight to one peer; more are held back here, for a full send queue would block the caller for seconds.
    It must not exceed the depth of one queue pair (MORI asks the device for 8,192, MORI_IO_QP_MAX_SEND_WR changes
    that). control_host: IPv4 address of this machine for MORI's control port, which peers connect to (None: what
    ``TransferConfig`` advertises). log_level: of MORI's own log.

    Notifications to the target are always off: core's control channel tells the other side.
    """

    fabric: Literal["rdma", "xgmi", "rdma+xgmi"] = "rdma"
    qp_per_transfer: Count = 4
    post_batch_size: Annotated[int, Meta(ge=-1, lt=2**31)] = -1
    num_worker_threads: Count = 4
    poll_cq_mode: Literal["polling", "event"] = "polling"
    enable_transfer_chunking: bool = False
    chunk_bytes: Annotated[int, Meta(ge=4_096, lt=2**31)] = 65_536
    max_chunks_per_transfer: Count = 64
    num_nics_per_transfer: Count = 1
    num_streams: Count = 64
    num_events: Count = 64
    max_outstanding: Count = 8_192
    control_host: str | None = None
    log_level: Literal["trace", "debug", "info", "warn", "error", "critical", "off"] = "error"

    def __post_init__(self) -> None:
        if self.post_batch_size == 0:
            raise ValueError("post_batch_size is 0, must be positive, or -1 for MORI's own choice")
