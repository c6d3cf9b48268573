"""Runs the doctor: as a command of its own, or some of its areas in this process (its children are processes all the same)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.tests.cli.support import Ran, kv_core
from kv_core import Role
from kv_core.cli.doctor.examine import Examination
from kv_core.cli.doctor.jobs import LoadBackend
from kv_core.cli.doctor.processes import Outcome, run
from kv_core.cli.doctor.report import Report
from kv_core.cli.doctor.settings import DoctorSettings

BACKEND = "fake"


def doctor(*arguments: str, site: Path | None = None, **extra: str) -> Ran:
    """The command, with --json."""
    return kv_core("doctor", "--json", *arguments, site=site, **extra)


def by_id(found: Report | dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Findings by their ids, the last of each."""
    document = found.as_dict() if isinstance(found, Report) else found
    return {each["id"]: each for each in document["findings"]}


def loaded(name: str = BACKEND) -> dict[str, Outcome]:
    """A backend, as a child loads it."""
    return {name: run(LoadBackend(name), 60)}


def examine(area: str, known: dict[str, Outcome], **settings: Any) -> Report:
    """One area, of the embedded backend."""
    told = DoctorSettings(**{"backend": BACKEND, "timeout_s": 10.0, **settings})
    return Examination(told, lambda _what: None, known).report({area})


def faults(**rule: Any) -> dict[str, dict[str, object]]:
    """Options that make the writing side misbehave."""
    return {Role.PREFILL.value: {"faults": [rule]}}


@contextmanager
def said(ran: Ran) -> Iterator[dict[str, dict[str, Any]]]:
    """A run's findings; what fails inside shows all that it said."""
    try:
        yield by_id(ran.document)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{ran}") from error
