"""Writes the project for the command line: a line for each file, and what to type next."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from kv_core.cli.new_backend.names import Names, Refused
from kv_core.cli.new_backend.project import write

EXIT_USAGE = 2


def run(name: str, folder: Path) -> int:
    """The whole command; its exit status."""
    try:
        names = Names(name)
        for path in write(names, folder):
            sys.stdout.write(f"wrote {path}\n")
    except Refused as refused:
        Console(stderr=True).print(f"[red]{escape(str(refused))}[/]", soft_wrap=True)
        return EXIT_USAGE
    sys.stdout.write(
        f"\nNext, in an environment that is yours to install into:\n\n"
        f"    cd {shlex.quote(str(folder))}\n"
        f"    pip install -e '.[test]'\n"
        f"    python -m kv_conformance {names.name} --report report/\n\n"
        f"The last one says what is left to write; it goes into src/{names.module}/transport.py.\n"
    )
    return 0
