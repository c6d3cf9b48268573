"""The pytest plugin. Installed, it is part of every run of pytest, and does nothing unless ``--kv-backend`` is given.

    pytest -p kv_conformance --pyargs kv_conformance.suite --kv-backend=NAME

runs the checks as pytest runs tests, which is what one wants while one looks for a mistake. The verdict and the report come
from ``python -m kv_conformance``, which runs the same in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from importlib import import_module
from pathlib import Path

import pytest

from kv_conformance.catalog import SUITE


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("kv-conformance", "kv-conformance: does a backend keep kv-core's contract?")
    group.addoption("--kv-backend", metavar="NAME", help="Test the backend of this name. Without it nothing happens.")
    group.addoption("--kv-gate", action="store_true", help="Only the short part, fit for every change.")
    group.addoption(
        "--kv-only",
        action="append",
        default=[],
        metavar="ID",
        help="Only this check, or area (KV-MEM); may be given again.",
    )
    group.addoption("--kv-known", type=Path, metavar="FILE", help="The file of known failures (TOML).")
    group.addoption("--kv-seed", type=int, default=0, metavar="N", help="Seed of everything that is random (0).")
    group.addoption("--kv-results", type=Path, metavar="FILE", help="Append the results to this file, as JSON lines.")
    group.addoption("--kv-run-id", metavar="ID", help="The run's id, in every record of the results file (a new one).")
    # For the tests of kv-conformance itself: another package of checks.
    group.addoption("--kv-suite", default=SUITE, help=argparse.SUPPRESS)


def pytest_configure(config: pytest.Config) -> None:
    """Set everything up, if a backend is to be tested."""
    backend = config.getoption("kv_backend", None)
    if not backend:
        return
    package = str(config.getoption("kv_suite"))
    rewritten = [name for name in (package, "kv_conformance.nodes") if name not in sys.modules]
    pytest.register_assert_rewrite(*rewritten)
    # Imported here: every run of pytest imports this module, and nearly none needs them.
    from kv_conformance import plugin_fixtures  # noqa: PLC0415
    from kv_conformance.known import KnownFailuresError, read_known_failures  # noqa: PLC0415
    from kv_conformance.plugin_conduct import Conduct  # noqa: PLC0415
    from kv_conformance.plugin_recorder import Recorder  # noqa: PLC0415
    from kv_conformance.plugin_subject import look_at  # noqa: PLC0415
    from kv_conformance.results import Writer  # noqa: PLC0415
    from kv_core import BackendNotFound  # noqa: PLC0415

    known_file = config.getoption("kv_known")
    try:
        subject = config.stash[plugin_fixtures.SUBJECT] = look_at(backend)
        known = read_known_failures(known_file) if known_file else {}
    except (BackendNotFound, KnownFailuresError) as error:
        raise pytest.UsageError(str(error)) from None
    folders = [Path(folder) for folder in import_module(package).__path__]
    conduct = Conduct(subject, folders, known, gate=config.getoption("kv_gate"), only=config.getoption("kv_only"))
    config.pluginmanager.register(plugin_fixtures, "kv_conformance_fixtures")
    config.pluginmanager.register(conduct, "kv_conformance_conduct")
    results = config.getoption("kv_results")
    if results and not hasattr(config, "workerinput"):
        writer = Writer(results, config.getoption("kv_run_id") or uuid.uuid4().hex)
        config.pluginmanager.register(Recorder(writer, subject), "kv_conformance_recorder")
