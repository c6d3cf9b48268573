"""What a plugin object may look like. pluggy lets nearly every mistake below pass in silence; here each is a ``Fault``.

Attributes are looked up statically and only functions are bound, so no property of a plugin is evaluated, on any
version of pluggy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from types import MethodType, ModuleType
from typing import Any

from kv_core.contract import hookspecs
from kv_core.contract.hookspecs import HOOK_PREFIX, PROJECT
from kv_core.registry.errors import Fault

_MARKER = f"{PROJECT}_impl"
_ABSENT = object()
OBSERVER_HOOKS = ("kv_room_event", "kv_peer_event")
"""Hooks that an observer handed to ``create_manager`` may have."""


def _specifications() -> dict[str, tuple[str, ...]]:
    functions = inspect.getmembers(hookspecs, inspect.isfunction)
    return {
        name: tuple(inspect.signature(function).parameters)
        for name, function in functions
        if hasattr(function, f"{PROJECT}_spec")
    }


SPECIFICATIONS = _specifications()
"""Every hook with the names of its parameters."""


@dataclass(frozen=True)
class Hook:
    """One hook of one plugin: the hook's name, the attribute that has it, and the bound function."""

    name: str
    attribute: str
    function: Callable[..., Any]
    options: dict[str, Any]

    def bound_to_event(self) -> Callable[[Any], object]:
        """The function as a callable of one event, also if it asks for none."""
        if inspect.signature(self.function).parameters:
            return self.function
        function = self.function

        def without_event(_event: object) -> object:
            return function()

        without_event.__qualname__ = getattr(function, "__qualname__", self.attribute)
        without_event.__module__ = getattr(function, "__module__", __name__)
        return without_event


def plugin_hooks(plugin: object) -> tuple[Hook, ...]:
    """The hooks of a plugin that an entry point names, after every check. Raises ``Fault``."""
    hooks = tuple(_marked(plugin))
    if not hooks:
        raise Fault(
            f"{_describe(plugin)} implements no hook",
            f"Mark at least one of {_listed(SPECIFICATIONS)} with @hookimpl from kv_core, or remove the entry point",
        )
    return hooks


def observer_hooks(observer: object) -> tuple[Hook, ...]:
    """The hooks of an observer handed to ``create_manager``: needs no marker, obeys the same rules. Raises ``Fault``."""
    _check_object(observer)
    hooks = []
    for attribute, static in _attributes(observer):
        if not attribute.startswith(HOOK_PREFIX):
            continue
        function = _bound(observer, attribute, static)
        if function is None:
            _check_no_hook_value(attribute, static)
            continue
        if attribute not in OBSERVER_HOOKS:
            raise Fault(f"{attribute} is not called on an observer", _rename(attribute, OBSERVER_HOOKS))
        _check_function(attribute, function)
        hooks.append(Hook(attribute, attribute, function, {}))
    if not hooks:
        raise Fault(f"{_describe(observer)} has nothing to call", f"Give it a method {_listed(OBSERVER_HOOKS)}")
    return tuple(hooks)


def _marked(plugin: object) -> Iterator[Hook]:
    _check_object(plugin)
    for attribute, static in _attributes(plugin):
        function = _bound(plugin, attribute, static)
        if function is None:
            _check_no_hook_value(attribute, static)
            continue
        options = getattr(function, _MARKER, None)
        if not isinstance(options, dict):
            _check_unmarked(attribute, static, function)
            continue
        name = options.get("specname") or attribute
        if name not in SPECIFICATIONS:
            raise Fault(f"there is no hook {name!r}", _rename(name, SPECIFICATIONS))
        if options.get("wrapper") or options.get("hookwrapper"):
            raise Fault(
                f"{attribute} is marked as a wrapper, and no hook of {PROJECT} can be wrapped",
                "Use plain @hookimpl without arguments",
            )
        _check_function(attribute, function, SPECIFICATIONS[name])
        yield Hook(name, attribute, function, options)


def _check_object(plugin: object) -> None:
    if inspect.isclass(plugin):
        raise Fault(
            f"{_describe(plugin)} is not an instance",
            f"Append the forgotten parentheses: {plugin.__name__}() instead of {plugin.__name__}",
        )
    if plugin is None or inspect.isroutine(plugin):
        raise Fault(
            f"{_describe(plugin)} is neither a module nor an instance with hooks",
            "Point to the module that has the hooks (without ':attribute'), or to an instance",
        )


def _check_unmarked(attribute: str, static: object, function: Callable[..., Any]) -> None:
    """An unmarked function is none of our business, unless its name says that it was meant to be a hook."""
    if static is not function and isinstance(vars(static).get(_MARKER) if hasattr(static, "__dict__") else None, dict):
        raise Fault(
            f"the marker of {attribute} is on the {type(static).__name__}, where it isn't seen",
            f"Put @hookimpl beneath @{type(static).__name__}, next to the def",
        )
    if not attribute.startswith(HOOK_PREFIX):
        return
    foreign = _foreign_project(function)
    if foreign:
        raise Fault(
            f"{attribute} has the hookimpl marker of the project {foreign!r}, so it would never be called",
            "Import the marker with `from kv_core import hookimpl`",
        )
    raise Fault(
        f"{attribute} has no @hookimpl marker, so it would never be called",
        f"Write @hookimpl (from kv_core) above it, or rename it if it is no hook: names in {HOOK_PREFIX}* are reserved",
    )


def _check_no_hook_value(attribute: str, static: object) -> None:
    if attribute in SPECIFICATIONS:
        raise Fault(
            f"{attribute} is {_describe(static)} and not a plain function, so it would never be called",
            f"Write `def {attribute}(...)`, without a property, partial or cache around it",
        )


def _check_function(attribute: str, function: Callable[..., Any], allowed: Collection[str] | None = None) -> None:
    """Refuse what pluggy would call wrongly, or call without effect."""
    expected = SPECIFICATIONS[attribute] if allowed is None else tuple(allowed)
    wanted = f"def {attribute}({', '.join(expected)})"
    for test, kind in _LAZY_KINDS:
        if test(function):
            raise Fault(
                f"{attribute} is {kind}: calling it runs nothing", f"Make it a plain function without yield: `{wanted}`"
            )
    bound_to = _first_parameter(function) if isinstance(function, MethodType) else ""
    if bound_to in expected:
        raise Fault(
            f"{attribute} is a method whose first parameter is {bound_to!r}, where the instance goes",
            f"Write `def {attribute}({', '.join(('self', *expected))})`",
        )
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise Fault(f"the signature of {attribute} can't be read ({error})", f"Write `{wanted}`") from None
    for parameter in parameters:
        reason = _parameter_fault(parameter, expected)
        if reason:
            raise Fault(f"{attribute}: parameter {parameter} {reason}", f"Write `{wanted}`")


_LAZY_KINDS = (
    (inspect.iscoroutinefunction, "an async function"),
    (inspect.isasyncgenfunction, "an async generator"),
    (inspect.isgeneratorfunction, "a generator"),
)


def _parameter_fault(parameter: inspect.Parameter, expected: Collection[str]) -> str:
    if parameter.kind is parameter.KEYWORD_ONLY:
        return "is keyword-only, and hooks are called by position"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return "would always be empty, because hooks are given only what they name"
    if parameter.name not in expected:
        match = get_close_matches(parameter.name, expected, n=1)
        return f"is unknown{f' (meant: {match[0]}?)' if match else ''}"
    if parameter.default is not parameter.empty:
        return "has a default, which pluggy's versions treat differently"
    return ""


def _attributes(plugin: object) -> Iterator[tuple[str, object]]:
    for name in dir(plugin):
        static = inspect.getattr_static(plugin, name, _ABSENT)
        if static is not _ABSENT and not (name.startswith("__") and name.endswith("__")):
            yield name, static


def _bound(plugin: object, attribute: str, static: object) -> Callable[..., Any] | None:
    """The function behind an attribute, bound; None for everything else, without evaluating it."""
    if isinstance(static, (staticmethod, classmethod, MethodType)) or inspect.isfunction(static):
        function: Callable[..., Any] = getattr(plugin, attribute)
        return function
    return None


def _first_parameter(method: MethodType) -> str:
    return next(iter(inspect.signature(method.__func__).parameters), "")


def _foreign_project(function: Callable[..., Any]) -> str:
    plain = getattr(function, "__func__", function)
    for key, value in vars(plain).items():
        if key.endswith("_impl") and isinstance(value, dict) and "tryfirst" in value:
            return key[: -len("_impl")]
    return ""


def _rename(name: str, known: Collection[str]) -> str:
    match = get_close_matches(name, known, n=1)
    return f"Rename it to {match[0]}" if match else f"The hooks are {_listed(known)}: rename or remove it"


def _listed(names: Collection[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _describe(thing: object) -> str:
    if isinstance(thing, ModuleType):
        return f"module {thing.__name__}"
    if inspect.isclass(thing):
        return f"class {thing.__module__}.{thing.__qualname__}"
    if inspect.isroutine(thing):
        return f"function {getattr(thing, '__qualname__', thing)}"
    return "None" if thing is None else f"an instance of {type(thing).__module__}.{type(thing).__qualname__}"
