"""What checks ask for. Registered only where a backend is tested: the names are common ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from kv_conformance.harness import Harness
from kv_conformance.plugin_conduct import COURSE
from kv_conformance.plugin_subject import Subject

if TYPE_CHECKING:
    from kv_conformance.nodes.env import Env

SUBJECT = pytest.StashKey[Subject]()


@pytest.fixture(name="harness", scope="session")
def _harness(pytestconfig: pytest.Config) -> Harness:
    """The backend's harness."""
    harness = pytestconfig.stash[SUBJECT].harness
    assert harness is not None, "without a harness no check is run"
    return harness


@pytest.fixture(name="env")
def _env(request: pytest.FixtureRequest, harness: Harness) -> Iterator[Env]:
    """The check's surroundings; everything in them ends with the check."""
    # Imported here: a run of other tests does not need it.
    from kv_conformance.nodes.env import Env  # noqa: PLC0415

    course = request.node.stash[COURSE]
    backend, seed = request.config.getoption("kv_backend"), request.config.getoption("kv_seed")
    env = course.env = Env(backend, harness, course.check, seed)
    env.__enter__()
    try:
        yield env
    finally:
        # A fixture is not told how its test went; the surroundings want to know, for their notes.
        error = course.error
        env.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
