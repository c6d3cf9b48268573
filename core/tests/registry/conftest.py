"""Every test here may ask for a ``site`` and for a ``registry`` of its own, blind to the environment's variables."""

from __future__ import annotations

import pytest

from core.tests.registry.support import site
from kv_core.registry import Registry

__all__ = ["registry", "site"]


@pytest.fixture
def registry() -> Registry:
    """A registry in which nothing is loaded and nothing is disabled."""
    return Registry(environ={})
