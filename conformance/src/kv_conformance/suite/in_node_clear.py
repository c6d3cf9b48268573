"""What rooms leave behind in a node's process."""

from __future__ import annotations

import gc
from time import sleep

from kv_conformance.nodes.face_server import FaceServer
from kv_conformance.suite.in_node_close import Holding, settled

LOOKS = 8
PAUSE_S = 0.02


def left_behind(server: FaceServer, limit_s: float) -> tuple[int, Holding]:
    """How many objects the collector knows, and what the process holds. Objects without those that come and go with a probe: the
    least of several looks. Handles that the server keeps for the suite are dropped.
    """
    server.handles.clear()
    seen = []
    for _ in range(LOOKS):
        gc.collect()
        seen.append(len(gc.get_objects()))
        sleep(PAUSE_S)
    return min(seen), settled(limit_s)
