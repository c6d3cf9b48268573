"""The commands and their options. What a command does is imported when it runs, so that ``--help`` opens no socket library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from kv_core.cli import trace_cmd
from kv_core.cli.doctor_cmd import doctor
from kv_core.cli.events_cmd import events_app
from kv_core.cli.plan_cmd import plan
from kv_core.cli.top_cmd import top
from kv_core.contract.enums import DigestMode, Role

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else.")]
# Typer evaluates these annotations, and on Python 3.10 it knows Optional[...] better than X | None.
Backend = Annotated[Optional[str], typer.Option(help="Name of the backend.", show_default="the embedded one")]  # noqa: UP045
Kill = Annotated[
    Optional[Role],  # noqa: UP045
    typer.Option(help="Kill this rank (SIGKILL) in the middle of traffic, restart it, retry what failed."),
]
Seed = Annotated[Optional[int], typer.Option(help="Seed of a run to be repeated.", min=0, show_default="a new one")]  # noqa: UP045
Options = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        help="A setting of the backend, JSON or text; may be given again. prefill.KEY=... or decode.KEY=... is for one rank.",
    ),
]
MetricsPort = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        help="Serve Prometheus metrics while it runs: prefill's at this port of 127.0.0.1, decode's at the next. 0: free ones.",
        min=0, max=65_534, show_default="none",
    ),
]  # fmt: skip
TraceFolder = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        metavar="DIR", help="Record both ranks' rooms in this folder, and write DIR/trace.json for https://ui.perfetto.dev.",
        show_default="none",
    ),
]  # fmt: skip
Version = Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)]

app = typer.Typer(
    name="kv-core",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="kv-core: moves KV-cache pages between prefill and decode servers over any backend that is installed.",
)


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: Version = False) -> None:
    """Without a command: the version, or the help."""
    if version:
        from kv_core import __version__  # noqa: PLC0415

        typer.echo(f"kv-core {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


@app.command()
def backends(as_json: JsonFlag = False) -> None:
    """List the installed backends: what works, what is broken, why, and what to do about it."""
    from kv_core.cli import backends_cmd  # noqa: PLC0415

    backends_cmd.run(as_json=as_json)


@app.command()
def demo(
    backend: Backend = None,
    requests: Annotated[int, typer.Option(help="Requests (rooms) to serve.", min=1)] = 50,
    concurrency: Annotated[int, typer.Option(help="Requests in flight at once.", min=1)] = 8,
    pages: Annotated[int, typer.Option(help="KV pages of each request.", min=1)] = 16,
    layers: Annotated[int, typer.Option(help="Layers of the model.", min=1)] = 8,
    page_bytes: Annotated[
        int, typer.Option(help="Bytes of a page in one layer: half keys, half values.", min=2)
    ] = 32_768,
    chunks: Annotated[int, typer.Option(help="Chunks in which prefill sends a request's pages.", min=1)] = 2,
    kill: Kill = None,
    seed: Seed = None,
    digest: Annotated[DigestMode, typer.Option(help="Rooms that both ends hash and compare.")] = DigestMode.OFF,
    timeout: Annotated[
        float, typer.Option(help="Seconds that a room may wait, or move without progress.", min=0.1)
    ] = 30.0,
    option: Options = None,
    metrics_port: MetricsPort = None,
    trace: TraceFolder = None,
    as_json: JsonFlag = False,
) -> None:
    """Move random pages from a prefill to a decode process and compare every byte.

    Exit status: 0 every byte right, 1 not so, 2 bad arguments, 3 a process died or hung.
    """
    from kv_core.cli.demo import DemoSettings, run_demo  # noqa: PLC0415
    from kv_core.cli.demo.options import parse_options  # noqa: PLC0415

    try:
        settings = DemoSettings(
            backend=backend, requests=requests, concurrency=concurrency, pages=pages, layers=layers,
            page_bytes=page_bytes, chunks=chunks, kill=kill, seed=seed, digest=digest, timeout=timeout,
            options=parse_options(option or []), metrics_port=metrics_port, trace=trace,
        )  # fmt: skip
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(run_demo(settings, as_json=as_json))


@app.command("new-backend")
def new_backend(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The backend's name: lower-case letters, digits, single '-' and '_'.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write: an empty folder, or a new one.")],
) -> None:
    """Write the project of a new backend: it installs and loads, and says which methods are left to write.

    Exit status: 0 written, 2 bad arguments.
    """
    from kv_core.cli.new_backend import run  # noqa: PLC0415

    raise typer.Exit(run(name, folder))


app.command()(doctor)
app.command()(top)
app.command()(plan)
app.add_typer(events_app)
app.command()(trace_cmd.trace)
