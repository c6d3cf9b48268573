"""What the checks of liveness and restart do inside of a node."""

from __future__ import annotations

from kv_conformance.nodes.face_server import FaceServer


def control_port(server: FaceServer) -> int | None:
    """The port at which the node's manager is spoken to; None if the backend's own manager does not say."""
    endpoint = getattr(server.manager, "endpoint", None)
    return int(endpoint.rpartition(":")[2]) if isinstance(endpoint, str) else None
