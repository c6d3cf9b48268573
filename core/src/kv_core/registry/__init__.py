"""Backends and observers by entry point: listed without being imported, loaded by name, checked before they are used.

An entry point in the group ``kv_core.backends`` is a backend and its name is the backend's name; one in
``kv_core.plugins`` brings observers or doctor checks. KV_CORE_DISABLED_PLUGINS (names, separated by commas) leaves out
plugins of both groups; KV_CORE_STRICT_PLUGINS=1 makes a broken observer plugin an error instead of a log record.
"""

from __future__ import annotations

from kv_core.contract.records import BackendRecord
from kv_core.registry.backend import Backend
from kv_core.registry.describe import (
    PluginReport,
    PluginStatus,
    describe_backends,
    describe_plugins,
    doctor_checks,
)
from kv_core.registry.errors import PluginError, PluginLoadError, PluginRefused
from kv_core.registry.loader import DEFAULT, Registry
from kv_core.registry.source import InstalledBackend, Source
from kv_core.registry.strict import StrictPluginManager


def list_backends() -> list[InstalledBackend]:
    """Installed backends, sorted by name, from distribution metadata alone: no plugin is imported."""
    return DEFAULT.list_backends()


def load_backend(name: str) -> Backend:
    """Import the backend of this name, and no other plugin, and check it completely.

    A backend that loaded is kept for the life of the process; one that failed is tried anew at the next call. May be
    called from any thread. Raises

    - ``BackendNotFound`` if no installed distribution offers it, or KV_CORE_DISABLED_PLUGINS names it;
    - ``BackendLoadError`` if its import, its ``kv_backend()`` or its preflight (which loads the engine) raised, or
      tried to end the process; ``__cause__`` is the original error;
    - ``IncompatibleBackend`` if it was built for another plugin API, breaks a rule for hooks, describes itself
      wrongly, brings classes that don't fit the contract, or if two distributions contend for the name.
    """
    return DEFAULT.load_backend(name)


def read_record(name: str) -> BackendRecord:
    """What the backend of this name says of itself and brings along, checked as ``load_backend`` checks it; its preflight is
    not run, so its engine need not be installed. Any thread. Raises what ``load_backend`` raises.
    """
    return DEFAULT.read_record(name)


__all__ = [
    "Backend",
    "InstalledBackend",
    "PluginError",
    "PluginLoadError",
    "PluginRefused",
    "PluginReport",
    "PluginStatus",
    "Registry",
    "Source",
    "StrictPluginManager",
    "describe_backends",
    "describe_plugins",
    "doctor_checks",
    "list_backends",
    "load_backend",
    "read_record",
]
