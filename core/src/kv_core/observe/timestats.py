"""Request time stats: what an engine's scheduler notes of one request, and the figures of its KV transfer.

The vocabulary is SGLang's (``sglang.srt.observability.req_time_stats``, 0.5.23), so that an engine can use this class
where it used that one.

**Units.** Time stamps and ``KVTransferMetric`` are in seconds and bytes. The figures have SGLang's names *and SGLang's
units*, because dashboards are built on them: ``latency_ms`` is milliseconds, ``total_mb`` is MiB (2**20 bytes) and
``speed_gb_s`` is GiB/s (2**30 bytes a second). ``wire_rate`` and every ``kv_core_*`` series are in bytes and seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypedDict

from kv_core.contract.enums import Role
from kv_core.contract.records import KVTransferMetric
from kv_core.observe.durations import GIB, MIB, MS_PER_S, duration_between, format_duration, known


class TransferFigures(TypedDict):
    """``latency_ms``: milliseconds; ``total_mb``: MiB; ``speed_gb_s``: GiB/s, 0.0 if nothing moved or no time passed."""

    latency_ms: float
    total_mb: float
    speed_gb_s: float


class TransferObserver(Protocol):
    """Takes the figures of each transfer that counts, as SGLang's metrics collector does."""

    def observe_kv_transfer_metrics(self, *, latency_ms: float, total_mb: float, speed_gb_s: float) -> None:
        """One transfer. Units as in ``TransferFigures``."""
        ...


def wire_rate(metric: KVTransferMetric) -> float | None:
    """Bytes a second while the room's bytes were on the network; None if that is not known, or nothing moved."""
    seconds, nbytes = metric.transfer_latency_s, metric.transfer_total_bytes
    if not (known(seconds) and known(nbytes)) or not seconds or not nbytes:
        return None
    return nbytes / seconds


def transfer_figures(nbytes: int, seconds: float) -> TransferFigures:
    """Bytes and seconds in SGLang's names and units."""
    speed = nbytes / GIB / seconds if seconds > 0 else 0.0
    return {"latency_ms": seconds * MS_PER_S, "total_mb": nbytes / MIB, "speed_gb_s": speed}


@dataclass
class RequestTimeStats:
    """Time stamps of one request on one rank: seconds of one monotonic clock, None until reached.

    ``warm_up``: a request to ``FAKE_BOOTSTRAP_HOST``. ``dummy``: this rank takes no part in the transfer (SGLang's dummy
    CP rank). ``aborted``: the request failed or was aborted. None of these is ever observed. ``observer`` is told the
    figures of a transfer that counts. Not thread-safe: it belongs to the scheduler's thread.
    """

    role: Role
    warm_up: bool = False
    dummy: bool = False
    aborted: bool = False
    observer: TransferObserver | None = field(default=None, repr=False, compare=False)

    bootstrap_done_time: float | None = None
    wait_queue_entry_time: float | None = None
    forward_entry_time: float | None = None
    completion_time: float | None = None

    prefill_bootstrap_queue_entry_time: float | None = None
    prefill_transfer_queue_entry_time: float | None = None
    prefill_kv_transfer_finish_time: float | None = None

    decode_prealloc_queue_entry_time: float | None = None
    decode_transfer_queue_entry_time: float | None = None

    transfer: TransferFigures | None = field(default=None, init=False)

    def compute_and_observe_kv_transfer_metrics(self, metric: KVTransferMetric) -> TransferFigures | None:
        """The figures of this request's transfer, told to the observer; None if they are not known or do not count.

        Not known: the size, or every latency. The backend's latency comes first; without one, the time from the entry
        into the transfer queue to the transfer's end stands for it, if both are known and in this order: it contains
        the wait in the queue, so a manager's own metric never takes this way.
        """
        nbytes = metric.transfer_total_bytes
        if self.warm_up or self.dummy or self.aborted or nbytes is None or not known(nbytes):
            return None
        latency = metric.transfer_latency_s if metric.transfer_latency_s is not None else self._queued_transfer()
        if latency is None or not known(latency):
            return None
        self.transfer = transfer_figures(nbytes, latency)
        if self.observer is not None:
            self.observer.observe_kv_transfer_metrics(**self.transfer)
        return self.transfer

    def _queued_transfer(self) -> float | None:
        if self.role is Role.PREFILL:
            start, end = self.prefill_transfer_queue_entry_time, self.prefill_kv_transfer_finish_time
        else:
            start, end = self.decode_transfer_queue_entry_time, self.wait_queue_entry_time
        if start is None or end is None or end < start:
            return None  # an end before its start is no time of zero: it is not known
        return duration_between(start, end)

    def convert_to_duration(self) -> str:
        """One log line: each stage's duration in milliseconds, "n/a" for one that the request did not reach."""
        stages = self._prefill_stages() if self.role is Role.PREFILL else self._decode_stages()
        stages |= {
            "queue_duration": duration_between(self.wait_queue_entry_time, self.forward_entry_time),
            "forward_duration": duration_between(self.forward_entry_time, self.completion_time),
        }
        parts = [f"{name}={format_duration(seconds)}" for name, seconds in stages.items()]
        start = self.prefill_bootstrap_queue_entry_time
        if self.role is Role.DECODE:
            start = self.decode_prealloc_queue_entry_time
        parts.append("start=n/a" if start is None else f"start={start:.3f}")
        if self.transfer is not None:
            told = self.transfer
            parts += [
                f"transfer_latency={told['latency_ms']:.3f}ms",
                f"transfer_speed={told['speed_gb_s']:.2f}GiB/s",
                f"transfer_total={told['total_mb']:.2f}MiB",
            ]
        return ", ".join(parts)

    def _prefill_stages(self) -> dict[str, float | None]:
        entry, done = self.prefill_bootstrap_queue_entry_time, self.bootstrap_done_time
        return {
            "bootstrap_queue_duration": duration_between(entry, self.wait_queue_entry_time),
            "bootstrap": duration_between(entry, done),
            "alloc_wait": duration_between(done, self.wait_queue_entry_time),
        }

    def _decode_stages(self) -> dict[str, float | None]:
        entry, done, transfer = (
            self.decode_prealloc_queue_entry_time, self.bootstrap_done_time, self.decode_transfer_queue_entry_time,
        )  # fmt: skip
        return {
            "prealloc_queue_duration": duration_between(entry, transfer),
            "bootstrap": duration_between(entry, done),
            "alloc_wait": duration_between(done, transfer),
            "transfer_duration": duration_between(transfer, self.wait_queue_entry_time),
        }
