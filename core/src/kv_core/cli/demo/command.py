"""Runs the demo for the command line: progress, report, exit status, and a clean end whatever happens."""

from __future__ import annotations

import json
import logging
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kv_core.cli.demo import metrics, tracing
from kv_core.cli.demo.book import Totals
from kv_core.cli.demo.choose import choose_backend
from kv_core.cli.demo.processes import RankDied
from kv_core.cli.demo.report import Report
from kv_core.cli.demo.router import DemoHung, Router
from kv_core.cli.demo.settings import DemoSettings
from kv_core.contract.enums import Role
from kv_core.contract.failures import BackendError, KVCoreError
from kv_core.registry import Backend
from kv_core.runtime.bootstrap import BootstrapServer

EXIT_USAGE = 2
EXIT_BROKEN = 3
EXIT_SIGNAL = 128
REDRAW_S = 0.1


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends the run as Ctrl-C does."""


def run(settings: DemoSettings, *, as_json: bool) -> int:
    """The whole command; its exit status."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    errors = Console(stderr=True)
    try:
        backend = choose_backend(settings.backend)
        if settings.metrics_port is not None:
            metrics.load()  # what is missing is said before any process is started
        if settings.trace is not None:
            tracing.prepare(settings.trace)
    except (BackendError, ModuleNotFoundError, ValueError) as error:
        return _complain(errors, str(error), EXIT_USAGE, as_json=as_json)
    seed = secrets.randbits(32) if settings.seed is None else settings.seed
    try:
        with _sigterm_interrupts():
            report = _serve(settings, backend, seed, Console(stderr=True, quiet=as_json))
    except KeyboardInterrupt as interrupt:
        number = signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT
        return _complain(
            errors, f"ended by {number.name}; both ranks were stopped", EXIT_SIGNAL + number, as_json=as_json
        )
    except (RankDied, DemoHung, KVCoreError) as error:
        text = f"the demo could not go on: {error}\nTo repeat the run: --seed {seed}"
        return _complain(errors, text, EXIT_BROKEN, as_json=as_json)
    if as_json:
        sys.stdout.write(report.as_json())
    else:
        report.print(Console())
    return report.exit_status


def _complain(errors: Console, text: str, status: int, *, as_json: bool) -> int:
    """Say why there is no report; the status."""
    errors.print(f"[red]{escape(text)}[/]", soft_wrap=True)
    if as_json:
        sys.stdout.write(json.dumps({"error": text, "exit_status": status}) + "\n")
    return status


def _serve(settings: DemoSettings, backend: Backend, seed: int, screen: Console) -> Report:
    # The bar draws itself from this thread; a thread of its own would draw while ranks are being started.
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]}"))
    with Progress(*columns, TimeElapsedColumn(), console=screen, auto_refresh=False) as progress:
        task = progress.add_task("requests", total=settings.requests, failed="")

        drawn_at = 0.0

        def show(totals: Totals) -> None:
            nonlocal drawn_at
            failed, over = totals.failed_attempts.total(), totals.succeeded + totals.gave_up
            progress.update(task, completed=over, failed=f"[red]{failed} failed[/]" if failed else "")
            if monotonic() - drawn_at > REDRAW_S or over == settings.requests:
                drawn_at = monotonic()
                progress.refresh()

        def show_metrics(role: Role, url: str) -> None:
            sys.stderr.write(f"metrics of the {role.value} rank: {url}\n")
            sys.stderr.flush()

        with (
            BootstrapServer(host="127.0.0.1", port=0) as server,
            Router(settings, backend.info.name, seed, server, show, show_metrics) as router,
        ):
            outcome = router.run()
    trace = "" if settings.trace is None else tracing.finish(settings.trace)
    return Report(settings, backend.info, seed, outcome, trace)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises ``Terminated`` here, so that the ranks are ended as after Ctrl-C."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a signal's handler
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
