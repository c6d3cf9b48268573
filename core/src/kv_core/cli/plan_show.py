"""What ``kv-core plan`` prints: a table with sentences below it, or one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kv_core.cli.plan_shapes import Plan

MOST = 40
"""Rows of the table, unless all are asked for."""


def document(made: Plan) -> dict[str, Any]:
    """The JSON object."""
    found: dict[str, Any] = {"refused": None, "moves": [move.as_dict() for move in made.moves]}
    if made.refused is not None:
        differences = [{"field": d.field, "prefill": d.remote, "decode": d.local} for d in made.refused.differences]
        found["refused"] = {"rule": made.refused.rule, "differences": differences}
    found["decode_ranks"] = [
        {"rank": list(rank), "sources": [list(one) for one in mapping.required],
         "destinations_of_sources": list(mapping.destinations), "dummies": [list(one) for one in mapping.dummies]}
        for rank, mapping in made.mappings.items()
    ]  # fmt: skip
    return found


def show(made: Plan, most: int | None) -> None:
    """The table, and what is to be known about ranks."""
    console = Console()
    if made.refused is not None:
        console.print(f"[red]Refused:[/] {escape(made.refused.rule)}", soft_wrap=True)
        for difference in made.refused.differences:
            told = f"  {difference.field}: prefill {difference.remote}, decode {difference.local}"
            console.print(escape(told), soft_wrap=True)
        return
    table = Table("prefill", "decode", "pool", "layers", "parts", "heads", "pages", title="What would move")
    for name in ("bytes/page", "descriptors/page"):
        table.add_column(name, justify="right")
    for move in made.moves[:most]:
        table.add_row(
            place(move.source, made.prefill), place(move.destination, made.decode), move.pool, move.layers, move.parts or "-", move.units,
            move.pages if move.tokens else "-", f"{move.bytes_per_page:,}", f"{move.descriptors_per_page:,}",
        )  # fmt: skip
    console.print(table)
    if most is not None and len(made.moves) > most:
        console.print(f"... and {len(made.moves) - most} rows more (--all shows them)")
    for line in notes(made):
        console.print(line, soft_wrap=True)


def notes(made: Plan) -> list[str]:
    """Sentences below the table."""
    lines = [
        f"A page is the smaller side's, {made.tokens} tokens; descriptors are those before merging, for all layers."
    ]
    answers = sorted({len(mapping.required) for mapping in made.mappings.values()})
    lines.append(f"A room of a decode rank needs the answers of {' or '.join(map(str, answers))} prefill ranks.")
    dummies = [one for mapping in made.mappings.values() for one in mapping.dummies]
    if dummies:
        told = ", ".join(place(one, made.prefill) for one in dummies[:16]) + (", ..." if len(dummies) > 16 else "")
        lines.append(f"Dummies, which are told of a room and send nothing: {len(dummies)} ({told}).")
    return lines


def place(ranks: Sequence[int], sizes: Sequence[int]) -> str:
    """A rank: its place along the axes that have several."""
    named = zip(("tp", "pp", "cp", "dp"), ranks, sizes, strict=True)
    return " ".join(f"{axis}{rank}" for axis, rank, size in named if size > 1) or "tp0"
