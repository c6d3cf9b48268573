"""What KV-MODEL-1 does inside of a node: some calls one after the other, then a look at every handle, in one request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple

from kv_conformance.nodes.face_server import FaceServer
from kv_conformance.suite.model_life import Seen
from kv_core import BaseKVReceiver, BaseKVSender, Role


class Call(NamedTuple):
    """A method of the handle with this number; ``open`` makes it, with the address and the room as arguments."""

    number: int
    method: str
    args: tuple[Any, ...] = ()
    named: Mapping[str, Any] = {}


LOOKS = 4
"""How often a handle is looked at until it stands still: it moves on three times at the most."""
_handles: dict[int, BaseKVSender | BaseKVReceiver] = {}
_told: dict[int, Seen] = {}


def step(server: FaceServer, calls: Sequence[Call]) -> dict[int, Seen]:
    """Make these calls; then every handle that has changed since it was looked at last."""
    for call in calls:
        if call.method == "open":
            prefill = server.order.role is Role.PREFILL
            create = server.manager.create_sender if prefill else server.manager.create_receiver
            _handles[call.number] = create(*call.args)
        else:
            getattr(_handles[call.number], call.method)(*call.args, **call.named)
    changed = {}
    for number, handle in _handles.items():
        seen = _look(handle)
        before = _told.get(number)
        if before is None or before.release_safe != seen.release_safe or not before.same(seen):
            changed[number] = _told[number] = seen
    return changed


def forget(_server: FaceServer) -> None:
    """Let go of all handles."""
    _handles.clear()
    _told.clear()


def _look(handle: BaseKVSender | BaseKVReceiver) -> Seen:
    for _ in range(LOOKS):
        # In this order: what is safe has ended, and what has ended has its failure and its metric.
        safe = handle.is_release_safe()
        state = handle.poll()
        failure = handle.failure()
        metric = handle.get_transfer_metric()
        if handle.poll() is state:
            break  # otherwise it has moved on meanwhile, and this is no picture of one moment
    latencies = (
        metric.transfer_latency_s, metric.alloc_latency_s, metric.bootstrap_latency_s, metric.queue_latency_s,
        metric.total_latency_s,
    )  # fmt: skip
    code, text = (None, "") if failure is None else (failure.code, failure.message)
    return Seen(state, code, text, metric.transfer_total_bytes, metric.chunks, latencies, safe, monotonic())
