"""A child of the doctor: ``python -m kv_core.cli.doctor.child``. One job on standard input, news on standard output."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys

import msgspec

from kv_core.cli.doctor import jobs


def main() -> int:
    """Read the job, do it. The exit status is not 0 only if something escaped that is the doctor's own mistake."""
    faulthandler.enable()  # a native crash shall say where
    logging.basicConfig(level=logging.WARNING)
    out = os.dup(1)
    os.dup2(2, 1)  # native libraries write to file descriptor 1 as they like
    job = msgspec.json.decode(_first_line(), type=jobs.Job)

    def tell(news: jobs.News) -> None:
        os.write(out, msgspec.json.encode(news) + b"\n")

    _do(job, tell)
    return 0


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise EOFError("the doctor closed the pipe before it sent a job")
        line += byte
    return line


def _do(job: jobs.Job, tell: jobs.Tell) -> None:
    # Imported for the job at hand: a child that looks at a library needs neither sockets nor NumPy.
    if isinstance(job, jobs.LookAtMachine):
        from kv_core.cli.doctor.machine_job import look_at_machine  # noqa: PLC0415

        tell(look_at_machine(job))
    elif isinstance(job, jobs.LoadBackend):
        from kv_core.cli.doctor.load_job import load_backend  # noqa: PLC0415

        load_backend(job, tell)
    elif isinstance(job, jobs.LoadPlugins):
        from kv_core.cli.doctor.load_job import load_plugins  # noqa: PLC0415

        load_plugins(tell)
    else:
        from kv_core.cli.doctor import transfer_jobs  # noqa: PLC0415

        transfer_jobs.do(job, tell)


if __name__ == "__main__":
    sys.exit(main())
