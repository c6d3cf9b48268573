"""The hooks: for what happens rarely and has many listeners. Everything per room, per chunk and per poll is a method.

A plugin marks its functions with ``hookimpl``::

    from kv_core import hookimpl


    @hookimpl
    def kv_backend() -> BackendRecord: ...
"""

from __future__ import annotations

import pluggy

from kv_core.contract.records import BackendRecord, DoctorCheck, PeerEvent, RoomEvent

PROJECT = "kv_core"
"""pluggy's project name: markers of another project are refused."""
HOOK_PREFIX = "kv_"
"""Every hook begins with this; a function so named without the marker is taken for a forgotten one."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def kv_backend() -> BackendRecord | None:
    """Return this plugin's backend. Importing the module and calling this load no native library."""


@hookspec
def kv_room_event(event: RoomEvent) -> None:
    """A room was opened, posted a chunk, concluded, or may be released. Observational: the return value is ignored, an
    exception is logged and stops no other observer. Called on core's dispatcher thread, in order for each room.
    """


@hookspec
def kv_peer_event(event: PeerEvent) -> None:
    """A peer joined, became suspect, recovered or was lost. Same rules as ``kv_room_event``."""


@hookspec
def kv_doctor_checks() -> list[DoctorCheck]:
    """Return the checks that ``kv-core doctor`` shall run."""
    return []
