"""Fixtures of the registry's tests."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.tests.registry.support import MANAGER, Site
from kv_core.registry import Registry


@pytest.fixture
def registry() -> Registry:
    """A registry in which nothing is loaded and nothing is disabled, whatever the environment says."""
    return Registry(environ={})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty site of this test's own."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(path)
    made = Site(path)
    yield made
    made.forget()
    importlib.invalidate_caches()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Stands in for the runtime: what ``create_manager`` handed to it, call by call."""
    calls: list[tuple] = []

    def create_manager(*given: object) -> object:
        calls.append(given)
        return MANAGER

    runtime = types.ModuleType("kv_core.runtime")
    runtime.create_manager = create_manager  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kv_core.runtime", runtime)
    return calls
