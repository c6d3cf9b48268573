"""What a spawned process does in the tests of pickling: tells what it got, and sends it back."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any


def echo(connection: Connection, things: list[Any]) -> None:
    """Send the representation of each thing that came in, then the thing itself."""
    with connection:
        for thing in things:
            connection.send((repr(thing), thing))
