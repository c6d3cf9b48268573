"""What the conformance suite is told of this backend is so."""

from __future__ import annotations

import pytest

from kv_conformance import Fault, Setting
from kv_core import Role
from kv_mooncake import options, preflight
from kv_mooncake.conformance import MooncakeHarness


def test_an_engine_that_does_not_load_is_a_missing_prerequisite(tmp_path, monkeypatch):
    (tmp_path / "mooncake").mkdir()
    (tmp_path / "mooncake" / "__init__.py").write_text("")
    (tmp_path / "mooncake" / "engine.py").write_text("raise ImportError('libacme.so.1: cannot open shared object')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (sentence,) = MooncakeHarness().prerequisites()
    assert "libacme.so.1: cannot open shared object" in sentence


def test_nothing_is_missing_where_the_engine_loads():
    try:
        preflight()
    except ImportError as error:
        pytest.skip(f"the Mooncake engine can't be loaded here: {error}")
    assert not MooncakeHarness().prerequisites()


def test_bytes_are_held_back_over_tcp_only():
    assert MooncakeHarness().setting(Role.DECODE) == Setting()
    held = MooncakeHarness().setting(Role.DECODE, Fault.HOLD_DATA)
    assert options.read(held.options)[1].protocol == "tcp"
