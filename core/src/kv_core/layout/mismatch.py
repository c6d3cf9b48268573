"""Why two layouts can't exchange pages: every differing field, with both values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kv_core.contract.failures import KVCoreError


class Difference(NamedTuple):
    """One field that differs, with both values as text."""

    field: str
    local: str
    remote: str


class LayoutMismatch(KVCoreError, ValueError):
    """Two memory layouts have no plan. ``differences`` lists every field that stands in the way."""

    def __init__(self, differences: Iterable[Difference], message: str = "") -> None:
        self.differences = tuple(differences)
        found = "; ".join(f"{d.field} (local {d.local}, remote {d.remote})" for d in self.differences)
        super().__init__(message or f"no pages can move between the two layouts: {found}")


class UnsupportedTopology(LayoutMismatch):
    """The two topologies, or the two ranks' places in them, can't serve each other. ``rule`` is what they break."""

    def __init__(self, rule: str, differences: Iterable[Difference]) -> None:
        differences = tuple(differences)
        found = "; ".join(f"{d.field} (local {d.local}, remote {d.remote})" for d in differences)
        super().__init__(differences, f"{rule}: {found}")
        self.rule = rule
