"""Whether a backend's class does what an abstract class of the contract asks, as far as that can be seen without
calling it. An ABC looks at names only, and only when the class is instantiated, which is when a request needs it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from kv_core.registry.errors import Fault

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_class(cls: object, contract: type, *, role: str, constructor: bool = False) -> None:
    """Raise ``Fault`` unless ``cls`` is a concrete subclass of ``contract`` with compatible signatures.

    Compatible: every parameter of the contract's method is there by name, kind and order; further ones have defaults;
    what the contract lets a caller leave out may be left out; nothing is ``async``. ``role`` says where the class
    comes from ("transport"). ``constructor``: core constructs it, so ``__init__`` is compared as well.
    """
    if not inspect.isclass(cls):
        raise Fault(
            f"record.{role} is {cls!r}, not a class",
            f"Put the class itself into the record: a subclass of {contract.__name__}, not an instance or a function",
        )
    if not issubclass(cls, contract):
        raise Fault(
            f"record.{role} is {_name(cls)}, which is no subclass of {contract.__name__}",
            f"Derive it from {contract.__name__} of kv_core",
        )
    _check_complete(cls, contract)
    for attribute, declared in contract_members(contract):
        _check_member(cls, contract, attribute, declared)
    if constructor:
        _check_member(cls, contract, "__init__", contract.__dict__["__init__"])


def overrides(cls: type, contract: type, method: str) -> bool:
    """Whether ``cls`` has a method of its own in place of the contract's default."""
    return inspect.getattr_static(cls, method) is not inspect.getattr_static(contract, method)


def contract_members(contract: type) -> Iterator[tuple[str, object]]:
    """Every public method and property of an abstract class and its bases, by name, as it stands in the class."""
    for attribute in dir(contract):
        declared = inspect.getattr_static(contract, attribute)
        if not attribute.startswith("_") and (inspect.isfunction(declared) or isinstance(declared, property)):
            yield attribute, declared


def _check_complete(cls: type, contract: type) -> None:
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        listed = ", ".join(f"{name}()" if inspect.isfunction(getattr(cls, name, None)) else name for name in missing)
        raise Fault(
            f"{_name(cls)} does not implement {listed} of {contract.__name__}",
            f"Implement {'it' if len(missing) == 1 else 'them'} as {contract.__module__} describes",
        )


def _check_member(cls: type, contract: type, attribute: str, declared: object) -> None:
    found = inspect.getattr_static(cls, attribute)
    if found is declared:
        return
    where = f"{_name(cls)}.{attribute}"
    is_method = inspect.isroutine(found) or isinstance(found, (staticmethod, classmethod))
    if isinstance(declared, FunctionType):
        if not is_method:
            raise Fault(
                f"{where} is {found!r}, and {contract.__name__} has a method there",
                f"Write `def {attribute}{_text(_signature(declared))}`",
            )
        _check_plain(where, getattr(cls, attribute), declared)
        _check_signature(where, found, declared)
    elif is_method:
        raise Fault(f"{where} is a method, and {contract.__name__} has a property there", "Add @property above it")


def _check_plain(where: str, function: Callable[..., Any], declared: Callable[..., Any]) -> None:
    lazy = str(declared.__annotations__.get("return", "")).startswith(("Iterable", "Iterator"))
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise Fault(
            f"{where} is async, and core calls it without awaiting it", "Write it with def instead of async def"
        )
    if inspect.isgeneratorfunction(function) and not lazy:
        raise Fault(f"{where} is a generator: calling it runs nothing", "Write it without yield")


def _check_signature(where: str, found: object, declared: object) -> None:
    expected, actual = _signature(declared), _signature(found)
    if expected is None or actual is None:
        return
    reason = _difference(expected, actual)
    if reason:
        method = where.rpartition(".")[2]
        raise Fault(
            f"{where}{_text(actual)} is not compatible with the contract's {method}{_text(expected)}: {reason}",
            f"Write `def {method}{_text(expected)}`, with any further parameters after those and with defaults",
        )


def _difference(expected: list[inspect.Parameter], actual: list[inspect.Parameter]) -> str:
    """The first thing that a caller of ``expected`` would stumble over, or an empty string."""
    by_name = {parameter.name: parameter for parameter in actual}
    for parameter in expected:
        own = by_name.pop(parameter.name, None)
        if own is None:
            return f"parameter {parameter.name!r} is missing"
        if own.kind is not parameter.kind:
            return f"parameter {parameter.name!r} is {_kind(own)}, must be {_kind(parameter)}"
        if parameter.default is not parameter.empty and own.default is own.empty:
            return f"parameter {parameter.name!r} has no default, and the contract lets callers leave it out"
    for extra in by_name.values():
        if extra.default is extra.empty and extra.kind not in (extra.VAR_POSITIONAL, extra.VAR_KEYWORD):
            return f"parameter {extra.name!r} has no default, and the contract's callers don't know it"
    wanted = [parameter.name for parameter in expected if parameter.kind in _POSITIONAL]
    order = [parameter.name for parameter in actual if parameter.kind in _POSITIONAL]
    if order[: len(wanted)] != wanted:
        return f"the positional parameters begin with {', '.join(order[: len(wanted)])}"
    return ""


def _signature(found: object) -> list[inspect.Parameter] | None:
    """Parameters without the instance or class, or None for native code that doesn't tell."""
    unbound = isinstance(found, staticmethod)
    function = found.__func__ if isinstance(found, (staticmethod, classmethod)) else found
    try:
        parameters = list(inspect.signature(function).parameters.values())  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    if unbound or (parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL):
        return parameters
    return parameters[1:]


def _kind(parameter: inspect.Parameter) -> str:
    return {
        parameter.POSITIONAL_OR_KEYWORD: "positional or by keyword",
        parameter.POSITIONAL_ONLY: "positional-only",
        parameter.KEYWORD_ONLY: "keyword-only",
        parameter.VAR_POSITIONAL: "variadic",
        parameter.VAR_KEYWORD: "variadic",
    }[parameter.kind]


def _text(parameters: list[inspect.Parameter] | None) -> str:
    """The parameters as one reads them in a def, without annotations; values of defaults shortened."""
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters or ()]
    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    if any(p.name == "self" for p in bare):
        return str(inspect.Signature(bare))
    return str(inspect.Signature([me, *bare])).replace("self, /", "self", 1)


def _name(cls: type) -> str:
    return f"class {cls.__module__}.{cls.__qualname__}"
