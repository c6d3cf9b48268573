"""The command line: many seeds on two processes, or one seed with its trace; and the mutants."""

from __future__ import annotations

import sys

from core.tests.simulation.world import run_seed


def main() -> int:
    import time

    t = time.perf_counter
    a = t()
    bad = {}
    start = int(sys.argv[1])
    n = int(sys.argv[2])
    ev = 0
    if n == 1:
        o = run_seed(start, traced=True)
        print("\n".join(o.trace[-int(sys.argv[3]) if len(sys.argv) > 3 else 0 :]))
        print(o.text or "ok", o.profile, o.events)
        return 0
    rooms = ok = 0
    for s in range(start, start + n):
        o = run_seed(s)
        ev += o.events
        rooms += o.rooms
        ok += o.succeeded
        if o.broken:
            bad.setdefault(o.broken, []).append((s, o.text, o.profile))
    d = t() - a
    print(f"{n} seeds {d:.1f}s {1000 * d / n:.1f} ms/seed {ev / n:.0f} ev, rooms {rooms} ok {ok}")
    for k, v in sorted(bad.items()):
        print(k, len(v))
        for s, x, pr in v[:8]:
            print("   ", s, pr, x[:300])
    return 0
