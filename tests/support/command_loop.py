"""The loop of a process that a test tells what to do: JSON lines, commands on stdin, replies and events on stdout.

    {"id": 1, "do": "NAME", ...} -> {"id": 1, "ok": ...} or {"id": 1, "error": "..."}

It ends when stdin does, so it never outlives the test that started it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from collections.abc import Callable
from typing import Any

BUSY_WAIT_S = 0.001
IDLE_WAIT_S = 1.0


class CommandLoop:
    """Extend it: public methods are the commands; ``busy`` and ``step`` are what goes on between them."""

    busy_wait_s = BUSY_WAIT_S

    def __init__(self) -> None:
        self._buffer = b""
        self._ended = False

    @property
    def busy(self) -> bool:
        """Whether ``step`` has something to look at."""
        return False

    def serve(self) -> None:
        """Until stdin ends."""
        try:
            while not self._ended:
                ready, _, _ = select.select([0], [], [], self.busy_wait_s if self.busy else IDLE_WAIT_S)
                if ready:
                    self._read()
                self._step()
        finally:
            self.close()

    def _read(self) -> None:
        data = os.read(0, 1 << 20)
        if not data:
            self._ended = True
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._answer(json.loads(line))

    def _answer(self, request: dict[str, Any]) -> None:
        number = request.pop("id")
        do: Callable[..., Any] = getattr(self, request.pop("do"))
        try:
            reply: dict[str, Any] = {"id": number, "ok": do(**request)}
        except Exception as error:
            logging.getLogger(__name__).exception("a command failed")
            reply = {"id": number, "error": f"{type(error).__name__}: {error}"}
        self.tell([reply])

    def _step(self) -> None:
        """Called again and again."""

    @staticmethod
    def tell(messages: list[dict[str, Any]]) -> None:
        """Write these, at once."""
        if messages:
            sys.stdout.write("".join(json.dumps(message, default=str) + "\n" for message in messages))
            sys.stdout.flush()

    def exit(self) -> None:
        """Close what is open, then end."""
        self.close()
        self._ended = True

    def close(self) -> None:
        """Close what is open."""
