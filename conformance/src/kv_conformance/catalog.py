"""What a check is: its id, its level, the sentence of the contract that it holds, and what it needs to be run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

from kv_conformance.harness import Fault
from kv_core import Capability

SUITE = "kv_conformance.suite"
"""The package that has the checks."""
AREAS = {
    "ID": "Identity and registration of the plugin",
    "MEM": "Registering memory",
    "PEER": "Getting to know peers, and forgetting them",
    "XFER": "Moving bytes",
    "TOPO": "Unequal topologies: ranks, pages and buffers that differ on the two sides",
    "PULL": "Pull: decode reads from prefill's memory",
    "POLL": "poll()",
    "MET": "get_transfer_metric()",
    "CLEAR": "clear()",
    "ABORT": "Aborting and draining",
    "LIVE": "Liveness, and the death of a peer",
    "RST": "Restart of a peer",
    "FAIL": "Failures and their types",
    "THR": "Threads and observers",
    "END": "What is left after close()",
    "CAP": "Capabilities: what is declared works, what is not is refused",
    "MODEL": "Histories: everything together, in any order",
}
"""Code and title of each area; a check's id is ``KV-<AREA>-<number>``."""
ID = re.compile(r"KV-([A-Z]+)-([1-9][0-9]*)")


class Level(str, Enum):
    """How binding a check is. A SHOULD that fails is reported and doesn't decide the verdict."""

    MUST = "MUST"
    SHOULD = "SHOULD"


@dataclass(frozen=True)
class Check:
    """One check.

    id: ``KV-<AREA>-<n>``; never given to another meaning. requires: the capability that it is about: without it the same
    check runs and must be refused with ``NotSupported``. proves: the capability that it proves where declared; elsewhere there is
    nothing to refuse, and it just runs. faults: what has to be done to the backend. engine: whether it
    needs the backend's engine. gate: whether it belongs to the short part that runs at every change. reaches: what must
    have happened in it, or its passing means nothing. sentence: what the contract says. advice: where to look if it fails.
    """

    id: str
    level: Level
    sentence: str
    advice: str
    requires: Capability | None = None
    faults: frozenset[Fault] = frozenset()
    engine: bool = True
    gate: bool = True
    limit_s: float = 120.0
    reaches: tuple[str, ...] = ()
    where: str = ""
    proves: Capability | None = None

    @property
    def area(self) -> str:
        """Code of the area."""
        return self.id.split("-")[1]

    @property
    def order(self) -> tuple[int, int]:
        """Sorts checks as the catalogue shows them."""
        return list(AREAS).index(self.area), int(self.id.split("-")[2])


_Function = TypeVar("_Function", bound=Callable[..., Any])
_ADVICE = "If this fails, "


def check(
    id: str,  # noqa: A002 - what it is called everywhere
    *,
    level: Level = Level.MUST,
    requires: Capability | None = None,
    proves: Capability | None = None,
    faults: Iterable[Fault] = (),
    engine: bool = True,
    gate: bool = True,
    limit_s: float = 120.0,
    reaches: Iterable[str] = (),
) -> Callable[[_Function], _Function]:
    """Make a test function a check. Its docstring is the sentence of the contract, then "If this fails, ..." ."""

    def mark(function: _Function) -> _Function:
        text = inspect.cleandoc(function.__doc__ or "")
        sentence, found, advice = text.partition(_ADVICE)
        matched = ID.fullmatch(id)
        if not matched or matched[1] not in AREAS:
            raise ValueError(f"{id!r} is no check id: KV-<AREA>-<n> with an area of {', '.join(AREAS)}")
        if not found or not sentence.strip():
            raise ValueError(f"{id}: the docstring must be the contract's sentence, then {_ADVICE!r} and where to look")
        function.__kv_check__ = Check(  # type: ignore[attr-defined]
            id, level, " ".join(sentence.split()), " ".join(advice.split()), requires, frozenset(faults), engine, gate,
            limit_s, tuple(reaches), f"{function.__module__}:{function.__name__}", proves,
        )  # fmt: skip
        return function

    return mark


def check_of(function: object) -> Check | None:
    """The check that a test function is, or None."""
    found = getattr(function, "__kv_check__", None)
    return found if isinstance(found, Check) else None


def all_checks(package: str = SUITE) -> list[Check]:
    """Every check of the installed suite, in order. Raises ``ValueError`` if two share an id or a test has none."""
    found: dict[str, Check] = {}
    for function in _test_functions(package):
        one = check_of(function)
        if one is None:
            raise ValueError(f"{function.__module__}.{function.__name__} is no check: give it an id")
        if one.id in found:
            raise ValueError(f"{one.id} is given twice: {found[one.id].where} and {one.where}")
        found[one.id] = one
    return sorted(found.values(), key=lambda one: one.order)


def left_out(one: Check, *, gate: bool, only: Sequence[str] = ()) -> str:
    """Why this check is not to be run; empty if it is. ``only``: ids of checks, and of areas (``KV-MEM``)."""
    if only and one.id not in only and f"KV-{one.area}" not in only:
        return "left out by --only"
    if gate and not one.gate:
        return "left out by --gate: it is no part of the short run"
    return ""


def _test_functions(package: str) -> Iterator[Callable[..., Any]]:
    suite = import_module(package)
    for module in iter_modules(suite.__path__, f"{suite.__name__}."):
        if module.name.rpartition(".")[2].startswith("test_"):
            for name, value in vars(import_module(module.name)).items():
                if name.startswith("test_") and callable(value):
                    yield value
