"""What is wrong with a plugin, in three steps: a ``Fault`` that a check found, then an error that says whose it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kv_core.contract.failures import KVCoreError
from kv_core.registry.hints import hint_for
from kv_core.registry.source import Source


class Fault(Exception):
    """A check's finding: what is wrong, and the mend in one sentence. The checks don't know whose plugin they look at."""

    def __init__(self, reason: str, mend: str) -> None:
        super().__init__(f"{reason}. {mend}")
        self.reason = reason
        self.mend = mend


class PluginError(KVCoreError):
    """A plugin can't be used; the message names it, its distribution and what to do.

    ``reason`` is the message without names and hint.
    """

    def __init__(self, reason: str, *, plugin: str, distributions: Sequence[str], hint: str) -> None:
        super().__init__(f"plugin {plugin!r} of {' and '.join(distributions)}: {reason}. {hint}")
        self.reason = reason
        self.plugin = plugin
        self.distributions = tuple(distributions)
        self.hint = hint


class PluginRefused(PluginError):
    """The plugin could be imported, but it breaks a rule of the plugin contract."""


class PluginLoadError(PluginError, ImportError):
    """The plugin's own code failed while it was loaded. ``__cause__`` is the original error."""


def refusal(fault: Fault, *sources: Source) -> PluginRefused:
    """The refusal of the plugin that ``sources`` (more than one if they contend for its name) stand for."""
    labels = tuple(source.label for source in sources)
    return PluginRefused(fault.reason, plugin=sources[0].name, distributions=labels, hint=fault.mend)


@contextmanager
def blame(source: Source) -> Iterator[None]:
    """Turn a ``Fault`` found within into the refusal of this plugin."""
    try:
        yield
    except Fault as fault:
        raise refusal(fault, source) from None


@contextmanager
def guard(source: Source, doing: str) -> Iterator[None]:
    """Turn whatever the plugin's own code raises within into a ``PluginLoadError``; ``doing`` says what was tried.

    SystemExit too: a native library that gives up by exiting must not take the server or the other plugins with it.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = f"{doing} raised {type(error).__name__}: {error}"
        raise PluginLoadError(
            reason, plugin=source.name, distributions=(source.label,), hint=hint_for(error, source)
        ) from error
