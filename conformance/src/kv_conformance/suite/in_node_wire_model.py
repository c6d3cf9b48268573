"""What KV-MODEL-2 does inside of the node that writes: some calls, then one ``progress``, in one request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kv_conformance.nodes.wire_server import Record, WireServer


class Order(NamedTuple):
    """A method of the node's ``WireServer``."""

    method: str
    args: tuple[Any, ...] = ()


def step(server: WireServer, orders: Sequence[Order], asked: Sequence[int]) -> tuple[list[Any], list[Record]]:
    """(what these calls returned, what ``progress`` then says of those transfers)."""
    answers = [getattr(server, order.method)(*order.args) for order in orders]
    return answers, server.progress(asked) if asked else []


def cancel_one(server: WireServer, number: int) -> bool:
    """Cancel a transfer, unless ``submit`` has not returned yet (``ThreadingModel.BLOCKING``) or has refused it."""
    server.progress(())
    if number not in server.transfers:
        return False
    server.cancel(number)
    return True
