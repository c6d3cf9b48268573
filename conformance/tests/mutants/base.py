"""What a mutant is: one backend that breaks one promise, and the check that must notice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from inspect import cleandoc
from typing import TypeVar

from kv_core import (
    BackendInfo,
    BackendRecord,
    BaseKVManager,
    BaseKVReceiver,
    BaseKVSender,
    Capability,
    Direction,
    NotSupported,
)
from kv_core.contract.transport import Transport, TransportContext
from kv_fake import FakeTransport

DISTRIBUTION = "kv-mutant"
"""The distribution that every mutant pretends to come from; ``site`` writes its metadata."""
VERSION = "0.1.0"
MODULE = "kv_mutant"
"""The plugin's module, which ``site`` writes."""
REFERENCE = "reference"
FAKE = frozenset({
    Capability.WRITE, Capability.AUX, Capability.STATE, Capability.CANCEL, Capability.FENCE, Capability.PROBE,
    Capability.EMBEDDED,
})  # fmt: skip
"""What the references can do, and say: kv-fake without READ, which ``reads`` has, and those that are like it."""
READS = "KV-CAP-2"
PLUGIN = """\
from kv_core import BackendRecord, hookimpl


@hookimpl
def kv_backend() -> BackendRecord:
    from {package} import record_of

    return record_of({name!r})
"""


@dataclass(frozen=True)
class Mutant:
    """One broken backend.

    breaks: the broken promise, a sentence. caught_by: the check that must fail. like: the reference whose outcomes it has
    where it is not broken. plugin: text of the plugin's module.
    sometimes: checks that may or may not fail, each with the reason. where: the module that has it. rivals: whether a
    second distribution offers the same name. harness: its class.
    """

    name: str
    breaks: str
    caught_by: str
    record: Callable[[], BackendRecord]
    like: str = REFERENCE
    plugin: str = PLUGIN
    sometimes: Mapping[str, str] = field(default_factory=dict)
    where: str = ""
    rivals: bool = False
    harness: str = "MutantHarness"

    @property
    def is_reference(self) -> bool:
        """Whether nothing is broken."""
        return not self.caught_by


MUTANTS: dict[str, Mutant] = {}
"""All of them by name, references first."""
_Class = TypeVar("_Class", bound=type)
_Build = TypeVar("_Build", bound=Callable[..., BackendRecord])


def info(name: str, capabilities: Iterable[Capability] = FAKE) -> BackendInfo:
    """What a mutant says of itself."""
    text = "kv-fake, broken on purpose: for the tests of kv-conformance"
    return BackendInfo(name, DISTRIBUTION, VERSION, (1, 0), frozenset(capabilities), text)


def mutant(
    name: str, caught_by: str, *, like: str = REFERENCE, also: Iterable[Capability] = (),
    without: Iterable[Capability] = (), sometimes: Mapping[str, str] | None = None, rivals: bool = False,
    harness: str = "MutantHarness",
) -> Callable[[_Class], _Class]:  # fmt: skip
    """Make a class a mutant, whose docstring is the broken promise: a transport, or a sender, receiver or manager on top of the
    reference's transport. A class that is none of these has them as attributes (``transport``, ``sender``, ...).

    also, without: how what it declares differs from its reference.
    """

    def register(kind: _Class) -> _Class:
        def record() -> BackendRecord:
            base = MUTANTS[like].record() if like != name else BackendRecord(info(name), FakeTransport)
            declared = (base.info.capabilities | set(also)) - set(without)
            parts = _parts(kind)
            return BackendRecord(
                info(name, declared), parts.get("transport", base.transport), parts.get("preflight"),
                parts.get("manager"), parts.get("sender"), parts.get("receiver"),
            )  # fmt: skip

        where = kind.__module__.rpartition(".")[2]
        _add(Mutant(name, _said(kind), caught_by, record, like, PLUGIN, dict(sometimes or {}), where, rivals, harness))
        return kind

    return register


def record_mutant(
    name: str, caught_by: str, *, like: str = REFERENCE, plugin: str = PLUGIN
) -> Callable[[_Build], _Build]:
    """Make a function that returns a record a mutant; it is given the mutant's name."""

    def register(build: _Build) -> _Build:
        where = build.__module__.rpartition(".")[2]
        _add(Mutant(name, _said(build), caught_by, lambda: build(name), like, plugin, where=where))
        return build

    return register


def text_mutant(name: str, caught_by: str, breaks: str, plugin: str) -> None:
    """A mutant that is broken in its plugin's own text."""
    _add(
        Mutant(
            name, breaks, caught_by, lambda: BackendRecord(info(name), FakeTransport), REFERENCE, plugin, where="naming"
        )
    )


def record_of(name: str) -> BackendRecord:
    """The record of a mutant: what its plugin's hook returns. One that does not declare READ refuses it, as kv-fake did before
    it could read, unless that is the promise that it breaks.
    """
    record = MUTANTS[name].record()
    refuses = MUTANTS[name].caught_by != READS and isinstance(record.transport, type)
    if refuses and issubclass(record.transport, FakeTransport) and Capability.READ not in record.info.capabilities:
        return replace(record, transport=_writes_only(record.transport))
    return record


def _writes_only(kind: type[FakeTransport]) -> type[FakeTransport]:
    class WritesOnly(kind):  # type: ignore[misc,valid-type]
        def __init__(self, context: TransportContext) -> None:
            if context.direction is Direction.READ:
                raise NotSupported("reading from a peer (pull)", "read")
            super().__init__(context)

    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(WritesOnly, name, getattr(kind, name))
    return WritesOnly


def _parts(kind: type) -> dict[str, type]:
    roles = {"transport": Transport, "sender": BaseKVSender, "receiver": BaseKVReceiver, "manager": BaseKVManager}
    for role, contract in roles.items():
        if issubclass(kind, contract):
            return {role: kind}
    return {role: vars(kind)[role] for role in (*roles, "preflight") if role in vars(kind)}


def _said(thing: object) -> str:
    text = " ".join(cleandoc(thing.__doc__ or "").split())
    if not text:
        raise ValueError(f"{thing!r} does not say which promise it breaks: write a docstring")
    return text


def _add(one: Mutant) -> None:
    if one.name in MUTANTS:
        raise ValueError(f"two mutants are named {one.name!r}")
    MUTANTS[one.name] = one
