"""The embedded backend under another name, as if a second plugin were installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from kv_core import load_backend
from kv_core.contract.observers import Observers
from kv_core.runtime import create_manager
from tests.support import pair


class _Renamed:
    def __init__(self, name: str) -> None:
        record = load_backend(pair.BACKEND).record
        self.record = replace(record, info=replace(record.info, name=name))

    def create_manager(self, role: Any, args: Any, config: Any, *, observers: Any = ()) -> Any:
        """As ``Backend.create_manager``, without observers."""
        return create_manager(self.record, role, args, config, Observers())


@contextmanager
def other_backend(name: str) -> Iterator[None]:
    """Inside, ``Pair`` finds this name too."""
    pair.OTHERS[name] = _Renamed(name)
    try:
        yield
    finally:
        del pair.OTHERS[name]
