"""pluggy's plugin manager with the checks that it leaves out, and the same behaviour on 1.6 and 1.7.

The two versions differ in what a refused registration leaves behind (1.6 keeps the plugin listed), in when properties
of a plugin are evaluated, and in what parameters with defaults mean. Here a plugin is examined completely before pluggy
sees it, pluggy is told only of the hooks that passed, and parameters with defaults are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, cast

import pluggy

from kv_core.contract import hookspecs
from kv_core.contract.hookspecs import PROJECT
from kv_core.registry.errors import Fault, blame
from kv_core.registry.hook_rules import Hook, plugin_hooks
from kv_core.registry.source import PLUGINS, Source


class StrictPluginManager(pluggy.PluginManager):
    """Takes plugins that keep every rule of ``hook_rules``; refuses others with ``PluginRefused``, unchanged itself.

    ``blocked``: names that are skipped when they come. Not for use by several threads at once: cheap to make, so every
    use makes its own.
    """

    def __init__(self, *, blocked: Iterable[str] = ()) -> None:
        super().__init__(PROJECT)
        self._hooks: dict[str, tuple[Hook, ...]] = {}
        self._sources: dict[str, Source] = {}
        self._admitting: dict[str, Hook] = {}
        self.add_hookspecs(hookspecs)
        for name in blocked:
            self.set_blocked(name)

    def admit(
        self, plugin: object, source: Source, *, required: Collection[str] = (), forbidden: Collection[str] = ()
    ) -> bool:
        """Register a plugin under its entry point's name; False if that name is blocked.

        ``required`` and ``forbidden``: hooks that a plugin of its entry-point group must have, or must not.
        Raises ``PluginRefused``.
        """
        if self.is_blocked(source.name):
            return False
        with blame(source):
            self._check_new(plugin, source)
            hooks = plugin_hooks(plugin)
            _check_group(hooks, source, required, forbidden)
            self._register(plugin, source, hooks)
        return True

    def register(self, plugin: object, name: str | None = None) -> str | None:
        """As ``admit``, for a plugin that comes from no entry point."""
        own = name or self.get_canonical_name(plugin)
        source = Source(PLUGINS, own, "", f"no distribution (registered by hand as {type(plugin).__name__})")
        return own if self.admit(plugin, source) else None

    def hooks(self, name: str) -> list[Hook]:
        """The registered implementations of one hook, in order of their plugins' registration."""
        return [hook for hooks in self._hooks.values() for hook in hooks if hook.name == name]

    def source(self, name: str) -> Source:
        """Where the plugin of this name comes from."""
        return self._sources[name]

    def plugin_hooks(self, name: str) -> tuple[Hook, ...]:
        """What the plugin of this name implements."""
        return self._hooks[name]

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        """Tell pluggy of the hooks that passed, and of nothing else (1.6 would evaluate every property)."""
        hook = self._admitting.get(name)
        return None if hook is None else cast("pluggy.HookimplOpts", dict(hook.options))

    def unregister(self, plugin: object | None = None, name: str | None = None) -> Any | None:
        """Forget a plugin."""
        own = name if name is not None else self.get_name(plugin)
        gone = super().unregister(plugin, name)
        self._hooks.pop(str(own), None)
        self._sources.pop(str(own), None)
        return gone

    def _check_new(self, plugin: object, source: Source) -> None:
        for name, known in self.list_name_plugin():
            if known is not None and (known is plugin or name == source.name):
                holder = self._sources[name]
                raise Fault(
                    f"{'the same object' if known is plugin else 'the name'} is registered already, "
                    f"as {name!r} of {holder.label}",
                    "Keep one of the two entry points",
                )

    def _register(self, plugin: object, source: Source, hooks: tuple[Hook, ...]) -> None:
        self._admitting = {hook.attribute: hook for hook in hooks}
        try:
            super().register(plugin, source.name)
        except Exception as error:
            self.unregister(name=source.name)
            raise Fault(
                f"pluggy {pluggy.__version__} refuses it: {error}",
                "Write its hooks as kv_core.contract.hookspecs has them",
            ) from error
        finally:
            self._admitting = {}
        self._hooks[source.name] = hooks
        self._sources[source.name] = source


def _check_group(
    hooks: tuple[Hook, ...], source: Source, required: Collection[str], forbidden: Collection[str]
) -> None:
    present = {hook.name for hook in hooks}
    for name in required:
        if name not in present:
            raise Fault(
                f"the hook {name} is missing, and the entry-point group {source.group} is for plugins that have it",
                f"Write a function {name} marked with @hookimpl, or move the entry point to the group {PLUGINS}",
            )
    for name in forbidden:
        if name in present:
            raise Fault(
                f"the hook {name} is never called on a plugin of the entry-point group {source.group}",
                "Move the entry point to the group kv_core.backends, and observers of their own to another module",
            )
