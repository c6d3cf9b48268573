"""What the conformance suite is told of this backend is so."""

from __future__ import annotations

import pytest

from kv_conformance import Fault, Setting
from kv_core import Role
from kv_nixl.conformance import NixlHarness
from kv_nixl.engine import PACKAGES, load_engine
from plugins.kv_nixl.tests.nixl_ends import FABRICS


def test_nixl_that_does_not_load_is_a_missing_prerequisite(tmp_path, monkeypatch):
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('libacme.so.1: cannot open shared object')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (sentence,) = NixlHarness().prerequisites()
    assert "libacme.so.1: cannot open shared object" in sentence


def test_nothing_is_missing_where_nixl_loads():
    try:
        load_engine()
    except ImportError as error:
        pytest.skip(f"NIXL can't be loaded here: {error}")
    assert not NixlHarness().prerequisites()


def test_bytes_are_held_back_over_tcp_only():
    assert NixlHarness().setting(Role.DECODE) == Setting()
    assert NixlHarness().setting(Role.DECODE, Fault.HOLD_DATA) == Setting(environment=FABRICS["tcp"])
