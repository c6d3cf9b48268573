"""Puts the short form of a report into a README, between two marks: ``python -m kv_conformance.readme REPORT README``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kv_conformance.markdown import summary_markdown
from kv_conformance.report import SCHEMA

BEGIN = "<!-- conformance:begin -->"
END = "<!-- conformance:end -->"


class ReadmeError(Exception):
    """The README has no place for the report, or the report is none."""


def replaced(readme: str, summary: str) -> str:
    """The README with this between the marks. Raises ``ReadmeError``."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ReadmeError(f"it must have the line {BEGIN} once, and after it the line {END} once")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{summary.strip()}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 written, 1 (with --check) it would change, 2 it can't be done."""
    parser = argparse.ArgumentParser(prog="python -m kv_conformance.readme", description=__doc__)
    parser.add_argument("report", type=Path, help="a report.json")
    parser.add_argument("readme", type=Path, help="a file with the two marks")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if it would change")
    asked = parser.parse_args(arguments)
    try:
        report = json.loads(asked.report.read_text(encoding="utf-8"))
        if not isinstance(report, dict) or report.get("schema") != SCHEMA:
            raise ReadmeError(f"{asked.report} is no report of schema {SCHEMA}")
        old = asked.readme.read_text(encoding="utf-8")
        new = replaced(old, summary_markdown(report))
        if not asked.check:
            asked.readme.write_text(new, encoding="utf-8")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except ReadmeError as error:
        sys.stderr.write(f"{asked.readme}: {error}\n")
        return 2
    return int(asked.check and old != new)


if __name__ == "__main__":
    sys.exit(main())
