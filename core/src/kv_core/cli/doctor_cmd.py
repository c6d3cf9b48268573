"""``kv-core doctor``: options only; the work is in ``kv_core.cli.doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

# Typer evaluates these annotations, and on Python 3.10 it knows Optional[...] better than X | None.
Backend = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="The backend that shall work.", show_default="every installed one is looked at"),
]
Peer = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="HOST:PORT", help="Bootstrap address of a live prefill instance, or of a serving doctor."),
]
ServeAt = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--serve", metavar="HOST:PORT", help="Wait for another doctor's --peer, as a prefill side, until Ctrl-C."
    ),
]
LayoutFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--layout", metavar="FILE", help="This side's layout (JSON), to be compared with the peer's."),
]
Host = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="TransferConfig.host, as it is going to be.", show_default="127.0.0.1"),
]
Advertised = Annotated[Optional[str], typer.Option(help="TransferConfig.advertised_host.", show_default="the host")]  # noqa: UP045
BootstrapPort = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Port of the bootstrap server.", min=1, max=65_535, show_default="8998"),
]
ControlPort = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="TransferConfig.control_port.", min=0, max=65_535, show_default="a free one"),
]
Require = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--require-transport", metavar="WORD", help="TransferConfig.require_transport: rdma, say. Again: one of them."
    ),
]
Options = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--option", metavar="KEY=VALUE", help="A setting of the backend, as for `kv-core demo`."),
]


def doctor(
    backend: Backend = None,
    peer: Peer = None,
    serve: ServeAt = None,
    layout: LayoutFile = None,
    host: Host = None,
    advertised_host: Advertised = None,
    bootstrap_port: BootstrapPort = None,
    control_port: ControlPort = None,
    require_transport: Require = None,
    option: Options = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one step may take.", min=0.5)] = 20.0,
    static: Annotated[bool, typer.Option("--static", help="Only look: register nothing, move nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else.")] = False,
) -> None:
    """Find out what keeps pages from moving here, or to that peer, and what to do about it.

    Exit status: 0 serving would work (there may be warnings), 1 a problem was found, 2 bad arguments.
    """
    from kv_core.cli.demo.options import parse_options  # noqa: PLC0415
    from kv_core.cli.doctor.settings import DoctorSettings, read_layout, serving_address  # noqa: PLC0415
    from kv_core.contract.fabrics import required_fabrics  # noqa: PLC0415
    from kv_core.runtime.bootstrap.addresses import parse_address  # noqa: PLC0415

    try:
        if peer is not None:
            parse_address(peer)
        if serve is not None:
            serving_address(serve)
        settings = DoctorSettings(
            backend=backend, peer=peer, layout=None if layout is None else read_layout(layout), host=host,
            advertised_host=advertised_host, bootstrap_port=bootstrap_port, control_port=control_port,
            require_transport=required_fabrics(require_transport or None), options=parse_options(option or []),
            timeout_s=timeout, static=static,
        )  # fmt: skip
        if serve is not None and (backend is None or peer is not None):
            raise ValueError("--serve goes with --backend NAME, and not with --peer")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    from kv_core.cli.doctor import command  # noqa: PLC0415

    if serve is not None and backend is not None:
        raise typer.Exit(command.serve(settings, backend, serve, as_json=as_json))
    raise typer.Exit(command.run(settings, as_json=as_json))
