"""What is tested and where: the backend's record, read without its engine, and its harness."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from kv_conformance.harness import GROUP, Fault, Harness
from kv_conformance.outcomes import HarnessError
from kv_core import BackendInfo, BackendNotFound, Capability, Role

PATIENCE_S = 30.0
"""The patience for which the checks' limits are meant; a harness with more gets longer limits."""


@dataclass(frozen=True)
class Subject:
    """One backend in one place.

    info: None if the record can't be read; info_error says why. harness: None if there is one that can't be used;
    harness_error says why. missing: prerequisites that are not there. settings: under what options and environment its
    processes run, by default and for the checks that need a fault, where that is not just the defaults.
    """

    backend: str
    info: BackendInfo | None = None
    info_error: str = ""
    harness: Harness | None = field(default_factory=Harness)
    harness_error: str = ""
    missing: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def declared(self) -> frozenset[Capability]:
        """The capabilities that the backend declares; none if its record can't be read."""
        return self.info.capabilities if self.info else frozenset()

    @property
    def stand_in(self) -> str:
        """What takes the engine's place here."""
        return self.harness.stand_in if self.harness and self.missing else ""

    @property
    def slowness(self) -> float:
        """By how much the limits of checks are to be stretched."""
        return max(1.0, self.harness.patience_s / PATIENCE_S) if self.harness else 1.0

    def as_dict(self) -> dict[str, Any]:
        """As the results file has it."""
        info = self.info
        return {
            "backend": self.backend,
            "info": info
            and {
                "name": info.name, "distribution": info.distribution, "version": info.version,
                "api_version": list(info.api_version), "description": info.description,
                "capabilities": sorted(capability.value for capability in info.capabilities),
            },
            "info_error": self.info_error,
            "harness": "" if self.harness is None else f"{type(self.harness).__module__}:{type(self.harness).__qualname__}",
            "harness_error": self.harness_error,
            "settings": self.settings,
            "missing": list(self.missing),
            "stand_in": self.stand_in,
            "slowness": self.slowness,
            "python": platform.python_version(),
        }  # fmt: skip


def look_at(backend: str) -> Subject:
    """Read the backend's record and construct its harness. What is wrong with them is in the answer; only a backend that is
    not installed raises (``kv_core.BackendNotFound``).
    """
    info, info_error = _info(backend)
    try:
        harness = load_harness(backend)
        missing, settings = missing_here(harness), settings_of(harness)
    except HarnessError as error:
        return Subject(backend, info, info_error, harness=None, harness_error=str(error))
    return Subject(backend, info, info_error, harness, missing=missing, settings=settings)


def load_harness(backend: str) -> Harness:
    """The harness that is installed for this backend, or the default one. Raises ``HarnessError``."""
    found = list(entry_points(group=GROUP, name=backend))
    if not found:
        return Harness()
    if len(found) > 1:
        owners = " and ".join(f"{_owner(one)} ({one.value})" for one in found)
        raise HarnessError(f"{len(found)} harnesses have the name {backend!r}: {owners}. Uninstall all but one")
    source = f"the harness {found[0].value} of {_owner(found[0])}"
    try:
        kind = found[0].load()
        if not (isinstance(kind, type) and issubclass(kind, Harness)):
            raise HarnessError(f"{source} is {kind!r}: the entry point must name a subclass of kv_conformance.Harness")
        harness = kind()
    except HarnessError:
        raise
    except (Exception, SystemExit) as error:
        raise HarnessError(f"{source} can't be loaded: {type(error).__name__}: {error}") from error
    _check(harness, source)
    return harness


def missing_here(harness: Harness) -> tuple[str, ...]:
    """The prerequisites that are missing, as the harness has it. Raises ``HarnessError``."""
    where = f"{type(harness).__module__}:{type(harness).__qualname__}.prerequisites()"
    try:
        answer: object = harness.prerequisites()
    except (Exception, SystemExit) as error:
        raise HarnessError(f"{where} raised {type(error).__name__}: {error}") from error
    sentences = answer if isinstance(answer, Sequence) and not isinstance(answer, str | bytes) else None
    if sentences is None or not all(isinstance(one, str) and one.strip() for one in sentences):
        raise HarnessError(
            f"{where} returned {answer!r}: expected a sequence of sentences, empty if nothing is missing"
        )
    return tuple(" ".join(one.split()) for one in sentences)


def settings_of(harness: Harness) -> dict[str, str]:
    """Options and environment that the harness gives to processes, in words, by "default" and by fault: so that a reader of
    the report sees what was proven under which of them. Raises ``HarnessError``.
    """
    found: dict[str, str] = {}
    for fault in (None, *Fault):
        for role in Role:
            try:
                setting = harness.setting(role, fault)
            except (Exception, SystemExit) as error:
                raise HarnessError(f"{type(harness).__qualname__}.setting({role}, {fault}) raised {error!r}") from error
            if setting is not None and (setting.options or setting.environment):
                words = [f"options {dict(setting.options)}"] if setting.options else []
                words += [f"environment {dict(setting.environment)}"] if setting.environment else []
                key = f"{fault.value if fault else 'default'}, {role.value}"
                found[key] = " and ".join(words)
    return found


def _info(backend: str) -> tuple[BackendInfo | None, str]:
    # Imported here: what only lists checks needs no registry.
    from kv_core.registry import read_record  # noqa: PLC0415

    try:
        return read_record(backend).info, ""
    except BackendNotFound:
        raise
    except Exception as error:  # noqa: BLE001 - the backend's record is what is tested
        return None, f"{type(error).__name__}: {error}"


def _check(harness: Harness, source: str) -> None:
    patience: object = harness.patience_s
    if isinstance(patience, bool) or not isinstance(patience, int | float) or not 0 < patience < float("inf"):
        raise HarnessError(f"{source} has patience_s={patience!r}: expected seconds, a number above 0")
    stand_in: object = harness.stand_in
    if not isinstance(stand_in, str):
        raise HarnessError(f"{source} has stand_in={stand_in!r}: expected a text, empty if there is none")


def _owner(entry_point: EntryPoint) -> str:
    distribution = entry_point.dist
    return f"{distribution.name} {distribution.version}" if distribution else "an unknown distribution"
