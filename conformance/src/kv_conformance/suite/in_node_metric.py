"""Looking at metrics inside of a node."""

from __future__ import annotations

from kv_conformance.nodes.face_server import FaceServer
from kv_core import KVTransferMetric


def different_metrics(server: FaceServer, number: int, times: int) -> list[KVTransferMetric]:
    """Ask a handle for its metric so many times; each answer that was not there before."""
    handle = server.handles[number]
    found: list[KVTransferMetric] = []
    for _ in range(times):
        metric = handle.get_transfer_metric()
        if metric not in found:
            found.append(metric)
    return found
