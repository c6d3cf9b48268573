"""``kv-core plan``: what would move from where to where between two topologies, without an engine or a network.

Options only; the work: ``plan_shapes`` and ``plan_show``.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Optional

import typer

Sizes = "parallel sizes: tp=4,pp=2,cp=1,dp=1; what is left out is 1."
JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else.")]
# Typer evaluates these annotations, and on Python 3.10 it knows Optional[...] better than X | None.
DecodePage = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Tokens of a page on decode's side, where it differs.", min=1, show_default="--page-size"),
]
DecodeLayout = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Order of the bytes in decode's pages, where it differs.", show_default="--layout"),
]


def plan(
    prefill: Annotated[str, typer.Option(help=f"Prefill's {Sizes}")],
    decode: Annotated[str, typer.Option(help=f"Decode's {Sizes}")],
    heads: Annotated[int, typer.Option(help="KV heads of the model.", min=1)] = 8,
    layers: Annotated[int, typer.Option(help="Layers of the model.", min=1)] = 32,
    head_bytes: Annotated[
        int, typer.Option(help="Bytes of a head's vector, or of MLA's latent vector, for one token.", min=1)
    ] = 256,
    page_size: Annotated[int, typer.Option(help="Tokens of a page.", min=1)] = 16,
    decode_page_size: DecodePage = None,
    layout: Annotated[str, typer.Option(help="Order of the bytes in a page: NHD or HND.")] = "NHD",
    decode_layout: DecodeLayout = None,
    mla: Annotated[
        bool, typer.Option("--mla", help="One latent vector for each token, which no rank shares out.")
    ] = False,
    every_row: Annotated[bool, typer.Option("--all", help="Every row of the table, however many there are.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Print what would move between two topologies: ranks, layers, heads, bytes and descriptors of each page.

    Exit status: 0 they can serve each other, 1 they can not, and why, 2 bad arguments.
    """
    from kv_core.cli.plan_shapes import Shape, make_plan, parse_sizes  # noqa: PLC0415
    from kv_core.cli.plan_show import MOST, document, show  # noqa: PLC0415

    decode_page, order = decode_page_size or page_size, decode_layout or layout
    try:
        shape = Shape(heads, layers, head_bytes, page_size, decode_page, layout, order, mla)
        made = make_plan(parse_sizes(prefill), parse_sizes(decode), shape)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        sys.stdout.write(json.dumps(document(made), indent=2) + "\n")
    else:
        show(made, None if every_row else MOST)
    raise typer.Exit(1 if made.refused else 0)
