"""Servers and services that are closed at the end, and a check that no thread outlives its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from core.tests.bootstrap.support import own_threads, until
from kv_core.runtime.bootstrap import BootstrapServer, HttpService


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    yield
    until(lambda: not own_threads(), "every thread of the bootstrap package has ended")


@pytest.fixture
def server() -> Iterator[BootstrapServer]:
    with BootstrapServer(port=0) as made:
        yield made


@pytest.fixture
def new_service() -> Iterator[Callable[..., HttpService]]:
    with ExitStack() as stack:

        def make(interval_s: float = 0.1) -> HttpService:
            return stack.enter_context(HttpService("test", probe_interval_s=interval_s))

        yield make


@pytest.fixture
def service(new_service: Callable[..., HttpService]) -> HttpService:
    return new_service()
