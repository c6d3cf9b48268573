"""``kv-core top``: options only; the work: ``kv_core.cli.top``."""

from __future__ import annotations

from typing import Annotated

import typer

Addresses = Annotated[
    list[str],
    typer.Argument(
        metavar="URL...",
        help="Metrics endpoints, added up by role: HOST:PORT, or a URL. A bootstrap server's HOST:PORT shows its ranks.",
    ),
]


def top(
    addresses: Addresses,
    interval: Annotated[float, typer.Option(help="Seconds between two scrapes.", min=0.1)] = 1.0,
    window: Annotated[float, typer.Option(help="Seconds that rates and percentiles are over.", min=0.1)] = 10.0,
    timeout: Annotated[float, typer.Option(help="Seconds that an endpoint may take to answer.", min=0.1)] = 3.0,
    once: Annotated[bool, typer.Option("--once", help="One frame, of two scrapes, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Each frame as one line of JSON, nothing else.")] = False,
) -> None:
    """Watch metrics endpoints: rooms by state, goodput, latency percentiles, failures by reason, peers. q or Ctrl-C ends.

    Exit status: 0, with --once 1 if an endpoint did not answer, 2 bad arguments.
    """
    from kv_core.cli.top import TopSettings, run  # noqa: PLC0415

    settings = TopSettings(tuple(addresses), interval, window, timeout, once, as_json)
    raise typer.Exit(run(settings))
