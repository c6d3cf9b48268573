"""What publishing KV-cache events costs the scheduler's thread while the subscriber is stopped (SIGSTOP).

    python benchmarks/publish.py [--batches 20000] [--blocks 16] [--json]

Each call is timed by itself, alternately on the publisher that publishes nothing (the ratio's denominator: the call and
the clock) and on the ZeroMQ one. ``paced`` rows wait a millisecond between calls, as a scheduler's passes do; ``burst`` rows
don't. ``overflow`` has room for 100 batches only, so that nearly every call drops one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

from kv_core.events import BlockStored, EventPublisher, KVEventBatch, NullEventPublisher, ZmqEventPublisher

LIMIT_US = 50.0
SUBSCRIBER = """
import sys, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.RCVHWM, 10)
socket.setsockopt(zmq.SUBSCRIBE, b"")
socket.connect(sys.argv[1])
socket.recv_multipart()
print("joined", flush=True)
socket.recv_multipart()
sys.stdin.read()
"""
COLUMNS = (
    "case",
    "calls",
    "null_p50_us",
    "null_p99_us",
    "zmq_p50_us",
    "zmq_p99_us",
    "zmq_max_us",
    "ratio_p50",
    "ratio_p99",
)


def batch_of(blocks: int) -> KVEventBatch:
    """One event with so many blocks of 16 tokens."""
    event = BlockStored(list(range(blocks)), None, list(range(blocks * 16)), 16, None, "GPU")
    return KVEventBatch(1.5, [event])


def timed_us(publisher: EventPublisher, batch: KVEventBatch) -> float:
    """One call."""
    start = time.perf_counter_ns()
    publisher.publish(batch)
    return (time.perf_counter_ns() - start) / 1e3


def measure(case: str, publisher: ZmqEventPublisher, calls: int, blocks: int, pause_s: float) -> dict[str, Any]:
    """One row: both publishers, call by call."""
    null = NullEventPublisher()
    nothing, real = [], []
    for _ in range(calls):
        batch = batch_of(blocks)
        nothing.append(timed_us(null, batch))
        real.append(timed_us(publisher, batch))
        if pause_s:
            time.sleep(pause_s)
    figures = [*percentiles(nothing), *percentiles(real), max(real)]
    ratios = [figures[2] / figures[0], figures[3] / figures[1]]
    return dict(zip(COLUMNS, [case, calls, *(round(figure, 2) for figure in (*figures, *ratios))], strict=True))


def percentiles(samples: list[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    ordered = sorted(samples)
    return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]


def with_stopped_subscriber(case: str, calls: int, blocks: int, pause_s: float, **config: Any) -> dict[str, Any]:
    """A publisher whose one subscriber has been stopped in the middle of reading."""
    publisher = ZmqEventPublisher(endpoint="tcp://127.0.0.1:0", replay_endpoint="tcp://127.0.0.1:0", **config)
    command = [sys.executable, "-c", SUBSCRIBER, publisher.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            while not process.stdout.read():
                publisher.publish(batch_of(1))
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGSTOP)
            row = measure(case, publisher, calls, blocks, pause_s)
        finally:
            process.kill()
            publisher.shutdown()
    return row | {"lost_batches": publisher.stats()["lost_batches"]}


def main() -> int:
    """Print the table; exit status 1 if the ZeroMQ publisher's p99 is not under 50 us in any row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=20_000)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [
        with_stopped_subscriber("paced", min(args.batches, 3_000), args.blocks, 0.001, hwm=1_000),
        with_stopped_subscriber("burst", args.batches, args.blocks, 0.0, hwm=1_000),
        with_stopped_subscriber("overflow", args.batches, args.blocks, 0.0, hwm=1_000, max_queue_size=100),
    ]
    if args.json:
        print(json.dumps({"limit_us": LIMIT_US, "rows": rows}, indent=2))
    else:
        names = [*COLUMNS, "lost_batches"]
        print("  ".join(f"{name:>12}" for name in names))
        for row in rows:
            print("  ".join(f"{row[name]!s:>12}" for name in names))
    return 0 if all(row["zmq_p99_us"] < LIMIT_US for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
