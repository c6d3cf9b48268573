"""Every test here runs with the stand-in for amd-mori, in this process and in those that it starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

STAND_IN = str(Path(__file__).parent / "stand_in")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.syspath_prepend(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", STAND_IN)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mori"]:
        del sys.modules[name]
