"""Every pair of unequal shapes with real processes, one for each rank, on every backend; every byte of all is compared.

    python -m tests.long.unequal [--backend fake nixl mooncake] [--kind served refused faults] [--only TEXT] [--seed S] [--json]

Served pairs: what prefill's ranks say they sent, what decode's say they got, and the bytes that are found in memory agree,
pages are safe on all ranks in the end, dummies included, and nothing is left alive. Refused pairs fail on both sides with
their rule, beside a room that goes on. Faults: a room with several sources and destinations is given up on one rank, or a rank
is killed; the next one goes well.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

from tests.support import command_line
from tests.unequal.faults import FAULTS, run_fault
from tests.unequal.judge import Result, run_pair
from tests.unequal.pairs import PAIRS
from tests.unequal.refused import REFUSED, run_refused
from tests.unequal.scene import Workers

BACKENDS = ("fake", "nixl", "mooncake")
KINDS = ("served", "refused", "faults")
Run = Callable[[Workers, int], Result]


def runs(kinds: list[str], only: str) -> Iterator[tuple[str, Run]]:
    """What there is to run, with its kind."""
    if "served" in kinds:
        yield from (("served", lambda w, s, p=one: run_pair(w, p, s)) for one in PAIRS if only in one.name)
    if "refused" in kinds:
        yield from (("refused", lambda w, s, p=one: run_refused(w, p, s)) for one in REFUSED if only in one.name)
    if "faults" in kinds:
        yield from (("fault", lambda w, s, f=one: run_fault(w, f, s)) for one in FAULTS if only in one.name)


def repeat(seed: int, backend: str, result: Result) -> str:
    """The command that repeats one of them."""
    return command_line.repeat("tests.long.unequal", seed, f"--backend {backend} --only '{result.name}'")


def main() -> int:
    """The command line."""
    parser = command_line.parser("Unequal shapes with real processes, on every backend")
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--only", default="", help="those whose name contains this text")
    given = parser.parse_args()
    seed = command_line.chosen_seed(given.seed)
    rows, violations = [], []
    for backend in given.backend:
        with Workers(backend) as workers:
            for kind, run in runs(given.kind, given.only):
                began = time.monotonic()
                result = run(workers, seed)
                rows.append({"kind": kind, **result.row(), "s": time.monotonic() - began})
                violations += [
                    f"{backend}: {result.name}: {text}\nto repeat: {repeat(seed, backend, result)}"
                    for text in result.problems
                ]
                if not given.json:
                    print(f"{len(rows)}: {backend}: {result.name}: {rows[-1]['result']}", file=sys.stderr, flush=True)
    command = command_line.repeat("tests.long.unequal", seed, f"--backend {' '.join(given.backend)}")
    return command_line.report("unequal shapes, end to end", rows, violations, command=command, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
