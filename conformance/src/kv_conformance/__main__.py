"""``python -m kv_conformance NAME``: does this backend keep the contract?"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from kv_conformance.catalog import SUITE, Check, all_checks
from kv_conformance.driver import BadArguments, Order, conduct
from kv_conformance.driver_process import Limits
from kv_conformance.markdown import catalogue
from kv_conformance.outcomes import Verdict
from kv_conformance.report_screen import screen
from kv_conformance.requirements import RequirementsError
from kv_conformance.results import Ended
from kv_conformance.verdict import EXIT_STATUS

EPILOG = """\
exit status: 0 conformant (or partial, if that is accepted), 1 failed, 2 bad arguments, 3 partial, 4 unknown.
What comes after -- goes to pytest. To look for a mistake, run the checks as pytest runs tests:
  pytest -p kv_conformance --pyargs kv_conformance.suite --kv-backend=NAME --kv-only=KV-XFER-1 --pdb
"""
BAD_ARGUMENTS = 2
NOTHING_KNOWN = EXIT_STATUS[Verdict.UNKNOWN]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, extra = _split(given)
    parser = _parser()
    asked = parser.parse_args(own)
    if not asked.backend and not asked.list:
        parser.error("which backend? Give its name, or --list to see the checks")
    try:
        if asked.list:
            sys.stdout.write(_listing(all_checks(asked.kv_suite), asked))
            return 0
        with _ended_orderly():
            return _run(asked, given, extra)
    except BadArguments as error:
        sys.stderr.write(f"kv-conformance: {error}\n")
        return BAD_ARGUMENTS
    except KeyboardInterrupt:
        sys.stderr.write("kv-conformance: interrupted, nothing is known\n")
    except (ValueError, RequirementsError) as error:
        sys.stderr.write(f"kv-conformance: the suite is broken: {error}\n")
    except Exception:  # noqa: BLE001 - whatever it is, it says nothing about the backend: not Python's own status, which is 1
        sys.stderr.write(f"kv-conformance: the suite is broken, nothing is known\n{traceback.format_exc()}")
    return NOTHING_KNOWN


def _run(asked: argparse.Namespace, given: Sequence[str], extra: Sequence[str]) -> int:
    order = Order(
        asked.backend, ("python", "-m", "kv_conformance", *given), asked.report, asked.gate, tuple(asked.only),
        asked.known_failures, asked.seed, tuple(extra), asked.kv_suite,
        Limits(grace_s=asked.kv_grace),
    )  # fmt: skip
    report = conduct(order, _progress)
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if asked.json else screen(report, asked.report))
    verdict = Verdict(report["verdict"])
    return 0 if verdict.value in asked.accept else EXIT_STATUS[verdict]


@contextmanager
def _ended_orderly() -> Iterator[None]:
    """Told to end (SIGTERM), end as at the keyboard: pytest's process has a session of its own, and would go on."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if former is None else former)


def _progress(check: str, ended: Ended) -> None:
    """On standard error, so that standard output is the answer alone."""
    sys.stderr.write(f"{check:<14}{ended.outcome.value:<14}{ended.duration_s:6.1f} s\n")
    sys.stderr.flush()


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Ours, and pytest's."""
    if "--" not in arguments:
        return list(arguments), []
    at = list(arguments).index("--")
    return list(arguments[:at]), list(arguments[at + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kv_conformance", description="Does a backend of kv-core keep the contract?", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("backend", nargs="?", metavar="NAME", help="the backend's name; its distribution must be installed")
    add("--report", type=Path, metavar="DIR", help="write report.json, report.md, junit.xml and pytest's output there")
    add("--gate", action="store_true", help="only the short part, fit for every change; the verdict is partial at best")
    add(
        "--only",
        action="append",
        default=[],
        metavar="ID",
        help="only this check (KV-POLL-1) or area (KV-MEM); may be given again",
    )
    add(
        "--known-failures",
        type=Path,
        metavar="FILE",
        help="known failures (default: kv-known-failures.toml, if it is there)",
    )
    add("--seed", type=_seed, default=0, metavar="N", help="seed of everything that is random (default: 0)")
    add("--accept", action="append", default=[], choices=["partial"], help="exit status 0 for this verdict too")
    add("--json", action="store_true", help="the report, or the list, as JSON on standard output")
    add("--list", action="store_true", help="show the checks, and run nothing")
    add("--markdown", action="store_true", help="with --list: as a page, with advice")
    # For the tests of kv-conformance itself: another package of checks, and less time for what hangs.
    add("--kv-suite", default=SUITE, help=argparse.SUPPRESS)
    add("--kv-grace", type=float, default=Limits.grace_s, help=argparse.SUPPRESS)
    return parser


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _listing(checks: Sequence[Check], asked: argparse.Namespace) -> str:
    if asked.markdown:
        return catalogue(checks)
    rows = [
        {
            "id": check.id, "level": check.level.value, "requires": check.requires.value if check.requires else "",
            "sentence": check.sentence,
        }
        for check in checks
    ]  # fmt: skip
    if asked.json:
        return json.dumps(rows, indent=2) + "\n"
    return "".join(f"{row['id']:<14}{row['level']:<8}{row['requires']:<16}{row['sentence']}\n" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
