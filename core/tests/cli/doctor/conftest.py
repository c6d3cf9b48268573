"""What several modules of the doctor's tests use."""

from __future__ import annotations

import pytest

from core.tests.cli.doctor import support


@pytest.fixture(scope="session")
def known():
    """The embedded backend, loaded by a child of the doctor."""
    return support.loaded()
