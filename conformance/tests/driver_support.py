"""A stranger's machine in a folder: backends and their harnesses, packages of checks, and a folder of their author's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.tests.registry.support import Site, backend_text

HARNESSES = """
    from kv_conformance import Harness

    class Bare(Harness):
        def prerequisites(self):
            return ["no RDMA device (ibv_devinfo is empty)"]

    class StandIn(Bare):
        stand_in = "a stand-in over TCP"

    class Broken(Harness):
        def __init__(self):
            raise RuntimeError("no licence")
"""
# What plays the checks' surroundings, in place of nodes: the suites here test the plugin, not a backend.
CONFTEST = """
    import sys
    import types


    class Env:
        def __init__(self, backend, harness, check, seed):
            self.backend, self.harness, self.check, self.seed = backend, harness, check, seed
            self.reached_points, self.notes, self.fabrics = set(), [], set()
            self.left_behind = ""

        def reached(self, point):
            self.reached_points.add(point)

        def __enter__(self):
            return self

        def __exit__(self, kind, error, traceback):
            self.fabrics.add("carrier pigeon")
            if error is not None:
                self.notes.append(f"told of {type(error).__name__}")
            assert not self.left_behind, self.left_behind


    module = types.ModuleType("kv_conformance.nodes.env")
    module.Env = Env
    sys.modules["kv_conformance.nodes.env"] = module
"""
HEAD = """
    import os
    import signal
    import time

    import pytest

    from kv_conformance import Level
    from kv_conformance.catalog import check
    from kv_conformance.outcomes import HarnessError, Untestable
    from kv_core import Capability, NotSupported

    ADVICE = "If this fails, look here."
"""


def checks(text: str) -> str:
    """A module of checks from a short form: each function's docstring gets its advice."""
    return textwrap.dedent(HEAD) + textwrap.dedent(text).replace('."""', '.\n\n    If this fails, look at it."""')


@dataclass
class Stranger:
    """``site``: what is installed besides the workspace. ``home``: where the author stands."""

    site: Path
    home: Path

    def suite(self, name: str, **modules: str) -> str:
        """A package of checks; its name."""
        folder = self.site / name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "conftest.py").write_text(textwrap.dedent(CONFTEST))
        for module, text in modules.items():
            (folder / f"{module}.py").write_text(checks(text))
        return name

    def call(self, *command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a Python command there."""
        return subprocess.run(
            [sys.executable, *command], cwd=cwd or self.home, capture_output=True, text=True, timeout=110,
            env=self._environment(environment),
        )  # fmt: skip

    def start(self, *command: str, cwd: Path) -> subprocess.Popen[bytes]:
        """The same, and don't wait."""
        return subprocess.Popen(
            [sys.executable, *command], cwd=cwd, env=self._environment({}), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "KV_"))}
        return {**clean, "PYTHONPATH": str(self.site), **more}

    def conformance(
        self, backend: str, suite: str, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """``python -m kv_conformance``."""
        return self.call(
            "-m", "kv_conformance", backend, "--kv-suite", suite, *arguments, cwd=cwd, **environment
        )  # fmt: skip


def stranger(folder: Path) -> Stranger:
    """A site with the backends good, bare, standin, broken and unreadable, all alike but for that."""
    site, home = folder / "site", folder / "home"
    site.mkdir()
    home.mkdir()
    installed = Site(site)
    names = {"good": "", "bare": "Bare", "standin": "StandIn", "broken": "Broken"}
    backends = "\n".join(
        f"{name} = {installed.module(backend_text(name, distribution='kv-subject', version='2.5'), f'kv_subject_{name}')}"
        for name in names
    )
    unreadable = installed.module("raise ImportError('libacme.so.3 is missing')", "kv_subject_unreadable")
    harnesses = installed.module(HARNESSES, "kv_subject_harness")
    own = "\n".join(f"{name} = {harnesses}:{harness}" for name, harness in names.items() if harness)
    installed.distribution(
        "kv-subject", "2.5", requires=("kv-core>=0.1", "acme-engine>=1; extra == 'engine'"),
        raw_entry_points=f"[kv_core.backends]\n{backends}\nunreadable = {unreadable}\n[kv_core.conformance]\n{own}\n",
    )  # fmt: skip
    installed.distribution("acme-engine", "1.7")
    return Stranger(site, home)


def report_in(folder: Path) -> dict[str, Any]:
    """The report that a run has written."""
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def outcomes_of(report: dict[str, Any]) -> dict[str, str]:
    """Outcome by check."""
    return {check["id"]: check["outcome"] for check in report["checks"]}


def detail_of(report: dict[str, Any], check: str) -> str:
    """Why a check has its outcome."""
    return next(str(one["detail"]) for one in report["checks"] if one["id"] == check)
