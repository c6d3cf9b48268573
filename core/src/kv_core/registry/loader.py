"""Loading by name: one plugin at a time, each failure with its owner, nothing remembered of a failure."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeVar

from kv_core.contract.failures import BackendError, BackendLoadError, BackendNotFound, IncompatibleBackend
from kv_core.contract.records import BackendRecord
from kv_core.registry.backend import Backend
from kv_core.registry.errors import Fault, PluginError, PluginRefused, blame, guard, refusal
from kv_core.registry.hook_rules import Hook
from kv_core.registry.source import (
    BACKENDS,
    DISABLED_VARIABLE,
    PLUGINS,
    InstalledBackend,
    Source,
    disabled_names,
    installed,
    scan,
    strict_plugins,
)
from kv_core.registry.strict import StrictPluginManager
from kv_core.registry.validate import check_record

logger = logging.getLogger(__name__)
_Error = TypeVar("_Error", bound=BackendError)
_Result = TypeVar("_Result")


class Registry:
    """What is installed and what of it is loaded. One per process is enough (the functions of ``kv_core.registry``).

    Keeps the backends that loaded; a name that failed is tried anew each time. May be used from any thread: plugins
    are imported under no lock but the interpreter's own, each load has a plugin manager of its own, and of two
    threads that load the same backend the first to finish wins. ``environ``: where the two settings
    KV_CORE_DISABLED_PLUGINS and KV_CORE_STRICT_PLUGINS are read, at each use.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self._loaded: dict[Source, Backend] = {}
        self._admitted: dict[str, StrictPluginManager] = {}
        self._reported: dict[str, str] = {}
        self._broken: dict[str, PluginError] = {}

    @property
    def disabled(self) -> frozenset[str]:
        """Names that KV_CORE_DISABLED_PLUGINS holds now."""
        return disabled_names(self._environ)

    @property
    def broken_plugins(self) -> Mapping[str, PluginError]:
        """The observer plugins that were left out the last time they were loaded, with the reason."""
        return dict(self._broken)

    def list_backends(self) -> list[InstalledBackend]:
        """Installed backends by name, from metadata alone."""
        return installed(BACKENDS, self.disabled)

    def load_backend(self, name: str) -> Backend:
        """Import this one plugin, check it, run its preflight. See ``kv_core.registry.load_backend``."""
        return self._named(name, self.load_from)

    def _named(self, name: str, use: Callable[[Sequence[Source]], _Result]) -> _Result:
        found = scan(BACKENDS)
        if name not in found or name in self.disabled:
            raise _not_found(name, found, self.disabled)
        try:
            return use(found[name])
        except PluginRefused as refused:
            raise _as_backend_error(IncompatibleBackend, refused) from refused.__cause__
        except PluginError as failed:
            raise _as_backend_error(BackendLoadError, failed) from failed.__cause__

    def load_from(self, sources: Sequence[Source]) -> Backend:
        """The backend of one name's entry points. Raises ``PluginRefused`` or ``PluginLoadError``."""
        source = _only(sources)
        known = self._loaded.get(source)
        if known is not None:
            return known
        record, hooks = self._read(source)
        if record.preflight is not None:
            with guard(source, "preflight()"):
                record.preflight()
        backend = Backend(record, hooks.plugin_hooks(source.name), self._observer_hooks, _reload)
        return self._loaded.setdefault(source, backend)

    def read_record(self, name: str) -> BackendRecord:
        """Import this one plugin and check its record; the engine is not loaded. See ``kv_core.registry.read_record``."""
        return self._named(name, lambda sources: self._read(_only(sources))[0])

    def _read(self, source: Source) -> tuple[BackendRecord, StrictPluginManager]:
        hooks = StrictPluginManager()
        with guard(source, f"importing {source.value}"):
            plugin = source.load()
        hooks.admit(plugin, source, required=("kv_backend",))
        self._admitted[source.name] = hooks
        with guard(source, "kv_backend()"):
            answer = hooks.hook.kv_backend()
        with blame(source):
            return check_record(answer, source), hooks

    def load_plugin(self, sources: Sequence[Source], into: StrictPluginManager) -> None:
        """Admit the observer plugin of one name's entry points. Raises ``PluginRefused`` or ``PluginLoadError``."""
        source = _only(sources)
        with guard(source, f"importing {source.value}"):
            plugin = source.load()
        into.admit(plugin, source, forbidden=("kv_backend",))

    def load_plugins(self) -> StrictPluginManager:
        """All observer plugins that can be used. A broken one is recorded, and logged the first time that it fails with
        this error; it is raised instead if KV_CORE_STRICT_PLUGINS is set.
        """
        hooks = StrictPluginManager(blocked=self.disabled)
        broken: dict[str, PluginError] = {}
        for name, sources in scan(PLUGINS).items():
            if hooks.is_blocked(name):
                continue
            try:
                self.load_plugin(sources, hooks)
            except PluginError as error:
                if strict_plugins(self._environ):
                    raise
                broken[name] = error
                self._report(name, error)
        self._broken = broken
        return hooks

    def admitted(self) -> dict[str, StrictPluginManager]:
        """Plugin managers of the backends whose plugin could be imported, whether or not the engine could be."""
        return {name: hooks for name, hooks in self._admitted.items() if name not in self.disabled}

    def _observer_hooks(self) -> list[Hook]:
        hooks = self.load_plugins()
        return [*hooks.hooks("kv_room_event"), *hooks.hooks("kv_peer_event")]

    def _report(self, name: str, error: PluginError) -> None:
        if self._reported.get(name) != str(error):
            self._reported[name] = str(error)
            logger.warning("observer plugin left out: %s", error, exc_info=error.__cause__)


DEFAULT = Registry()
"""The registry of this process."""


def _reload(name: str) -> Backend:
    """What a pickled ``Backend`` unpickles through."""
    return DEFAULT.load_backend(name)


def _only(sources: Sequence[Source]) -> Source:
    if len(sources) == 1:
        return sources[0]
    entries = " and ".join(f"{source.label} ({source.value})" for source in sources)
    fault = Fault(
        f"{len(sources)} entry points have this name: {entries}",
        f"Uninstall all but one of {', '.join(dict.fromkeys(source.distribution for source in sources))}",
    )
    raise refusal(fault, *sources)


def _as_backend_error(kind: type[_Error], error: PluginError) -> _Error:
    return kind(
        f"backend {error.plugin!r} of {' and '.join(error.distributions)} can't be used: {error.reason}",
        backend=error.plugin,
        distributions=error.distributions,
        hint=error.hint,
    )


def _not_found(name: str, found: Mapping[str, Sequence[Source]], disabled: frozenset[str]) -> BackendNotFound:
    if name in found:
        labels = tuple(source.label for source in found[name])
        return BackendNotFound(
            f"backend {name!r} of {' and '.join(labels)} is disabled by {DISABLED_VARIABLE}",
            backend=name,
            distributions=labels,
            hint=f"Remove it from {DISABLED_VARIABLE}",
        )
    offers = "; ".join(
        f"{other} ({' and '.join(source.label for source in sources)}{', disabled' if other in disabled else ''})"
        for other, sources in found.items()
    )
    match = get_close_matches(str(name).lower(), found, n=1)
    close = f"Did you mean {match[0]!r}? Otherwise install" if match else "Install"
    return BackendNotFound(
        f"no backend named {name!r} is installed; installed are: {offers or 'none'}",
        backend=str(name),
        hint=f"{close} the distribution that offers it (by custom: pip install kv-NAME) for {sys.executable}",
    )
