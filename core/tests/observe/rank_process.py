"""A process that counts into the shared folder of PROMETHEUS_MULTIPROC_DIR: ``python rank_process.py ROLE ROOMS``.

Writes "ready" when everything has been counted, ends when its standard input closes.
"""

from __future__ import annotations

import sys

from kv_core.contract.enums import Capability, KVPoll, Role
from kv_core.contract.records import BackendInfo, KVTransferMetric, RoomEvent, RoomEventKind
from kv_core.observe import PrometheusMetrics


def main() -> None:
    role, rooms = Role(sys.argv[1]), int(sys.argv[2])
    info = BackendInfo("test", "kv-test", "1.2.3", (1, 0), frozenset({Capability.WRITE}))
    with PrometheusMetrics(refresh_s=0.05) as metrics:
        observer = metrics.observer(info, role)
        live = {"rooms_by_phase": {"moving": rooms}, "fabrics": {"p": "rdma"}, "dropped": {"stale_packets": rooms}}
        observer.watch(lambda: live)
        metric = KVTransferMetric(0.5, 1000, total_latency_s=1.0, chunks=1, latency_source="core")
        for number in range(rooms):
            concluded = RoomEvent(RoomEventKind.CONCLUDED, "test", role, number, 1, KVPoll.Success, 1.0, metric)
            observer.kv_room_event(concluded)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
