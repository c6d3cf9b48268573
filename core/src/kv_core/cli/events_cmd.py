"""``kv-core events``: look at any publisher's stream of KV-cache events. Options only; the work: ``events_cmd_run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

events_app = typer.Typer(
    name="events", no_args_is_help=True, help="KV-cache events: watch, check, record and play a publisher's stream."
)

Endpoint = Annotated[str, typer.Argument(metavar="ENDPOINT", help="The publisher's PUB endpoint: tcp://HOST:PORT.")]
# Typer evaluates these annotations, and on Python 3.10 it knows Optional[...] better than X | None.
ReplayEndpoint = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="ENDPOINT", help="The publisher's replay endpoint: what is kept comes first, gaps are filled."
    ),
]
Topic = Annotated[str, typer.Option(help="Only topics that begin so.")]
Bind = Annotated[
    bool, typer.Option("--bind", help="Bind ENDPOINT instead of connecting to it, for publishers that connect.")
]
Count = Annotated[Optional[int], typer.Option(help="End after so many messages.", min=1, show_default="none")]  # noqa: UP045
Seconds = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="End after so many seconds.", min=0.0, show_default="Ctrl-C ends"),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")]


@events_app.command()
def tail(
    endpoint: Endpoint,
    replay_endpoint: ReplayEndpoint = None,
    topic: Topic = "",
    count: Count = None,
    seconds: Seconds = None,
    bind: Bind = False,
    as_json: JsonFlag = False,
) -> None:
    """Show batches as they come, one line each."""
    from kv_core.cli import events_cmd_run as work  # noqa: PLC0415

    source = work.Source(endpoint, replay_endpoint, topic, bind=bind, count=count, seconds=seconds)
    raise typer.Exit(work.tail(source, as_json=as_json))


@events_app.command()
def check(
    source: Annotated[str, typer.Argument(metavar="ENDPOINT|FILE", help="A PUB endpoint, or a file made by `record`.")],
    replay_endpoint: ReplayEndpoint = None,
    topic: Topic = "",
    count: Count = None,
    seconds: Seconds = None,
    bind: Bind = False,
    as_json: JsonFlag = False,
) -> None:
    """Check frames, schema (all wire profiles), sequence numbers and chains of blocks.

    Exit status: 0 nothing wrong, 1 errors found, 2 bad arguments, 3 not one message came.
    """
    from kv_core.cli import events_cmd_run as work  # noqa: PLC0415

    where = work.Source(source, replay_endpoint, topic, bind=bind, count=count, seconds=seconds)
    raise typer.Exit(work.check(where, as_json=as_json))


@events_app.command()
def record(
    endpoint: Endpoint,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write; a file that is there is replaced.")],
    replay_endpoint: ReplayEndpoint = None,
    topic: Topic = "",
    count: Count = None,
    seconds: Seconds = None,
    bind: Bind = False,
) -> None:
    """Write the stream to a file, frame by frame, for `check` and `play`."""
    from kv_core.cli import events_cmd_run as work  # noqa: PLC0415

    source = work.Source(endpoint, replay_endpoint, topic, bind=bind, count=count, seconds=seconds)
    raise typer.Exit(work.record(source, file))


@events_app.command()
def replay(
    endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT", help="The publisher's *replay* endpoint.")],
    start: Annotated[int, typer.Option("--from", help="The first sequence number asked for.", min=0)] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each message.", min=0.1)] = 10.0,
    as_json: JsonFlag = False,
) -> None:
    """Ask a publisher for what it still has, and check that.

    Exit status: 0 nothing wrong, 1 errors found, 2 bad arguments, 3 no answer.
    """
    from kv_core.cli import events_cmd_run as work  # noqa: PLC0415

    raise typer.Exit(work.replay(endpoint, start, timeout_s=timeout, as_json=as_json))


@events_app.command()
def play(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file made by `record`.", exists=True, dir_okay=False)],
    endpoint: Annotated[
        str, typer.Argument(metavar="ENDPOINT", help="Where to publish: bound; port 0 takes a free one.")
    ],
    profile: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Write batches in this wire profile: map, vllm, legacy.", show_default="as recorded"),
    ] = None,
    speed: Annotated[float, typer.Option(help="1: as recorded, 10: ten times as fast, 0: at once.", min=0.0)] = 1.0,
    wait: Annotated[float, typer.Option(help="Seconds to wait for a first subscriber.", min=0.0)] = 60.0,
) -> None:
    """Publish a recorded stream once a subscriber is there, with the numbers that it had.

    Exit status: 0 played, 1 the file is damaged, 2 bad arguments, 3 no subscriber came.
    """
    from kv_core.cli import events_cmd_run as work  # noqa: PLC0415

    raise typer.Exit(work.play(file, endpoint, profile=profile, speed=speed, wait_s=wait))
