"""A loaded backend, and the managers that it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kv_core.contract.config import TransferConfig
from kv_core.contract.enums import Role
from kv_core.contract.failures import InvalidConfig
from kv_core.contract.interfaces import BaseKVManager
from kv_core.contract.memory import KVArgs
from kv_core.contract.observers import Observers
from kv_core.contract.records import BackendInfo, BackendRecord
from kv_core.registry.errors import Fault
from kv_core.registry.hook_rules import Hook, observer_hooks


class Backend:
    """A backend that passed every check. Get it from ``load_backend``; make as many managers from it as you like.

    May be used from any thread. Pickled, it is loaded again by its name where it is unpickled, so it can be handed to
    a spawned process that has the same packages installed.

    ``own_hooks``: what the backend's plugin implements; its observers hear of this backend's managers only.
    ``plugin_hooks``: asked at each ``create_manager`` for the hooks of the ``kv_core.plugins``.
    ``reload``: how a pickled copy finds its backend.
    """

    def __init__(
        self,
        record: BackendRecord,
        own_hooks: Sequence[Hook],
        plugin_hooks: Callable[[], Sequence[Hook]],
        reload: Callable[[str], Backend],
    ) -> None:
        self._record = record
        self._own_hooks = tuple(own_hooks)
        self._plugin_hooks = plugin_hooks
        self._reload = reload

    def __reduce__(self) -> tuple[Any, ...]:
        return (self._reload, (self.info.name,))

    def __repr__(self) -> str:
        return f"<Backend {self.info.name!r} of {self.info.distribution} {self.info.version}>"

    @property
    def info(self) -> BackendInfo:
        """What the backend says of itself."""
        return self._record.info

    @property
    def record(self) -> BackendRecord:
        """The description with the classes that core builds."""
        return self._record

    def create_manager(
        self, role: Role, args: KVArgs, config: TransferConfig | None = None, *, observers: Sequence[object] = ()
    ) -> BaseKVManager:
        """Build the manager of one rank: registers its memory and starts its threads. Close it, or use it in ``with``.

        ``observers``: objects with a method ``kv_room_event(self, event)`` or ``kv_peer_event(self, event)`` or both
        (no marker needed), told after the backend's own observers and those of plugins; called on core's dispatcher
        thread. Raises ``InvalidConfig`` for arguments of the wrong type and for observers that could not be called,
        ``RegistrationError`` or ``TransportError`` if the backend can't set up, and ``PluginError`` for a broken
        observer plugin if KV_CORE_STRICT_PLUGINS is set.
        """
        if not isinstance(args, KVArgs):
            raise InvalidConfig(f"args is {type(args).__name__}, must be KVArgs (pools of memory and the rank's place)")
        if config is not None and not isinstance(config, TransferConfig):
            raise InvalidConfig(f"config is {type(config).__name__}, must be TransferConfig or None for its defaults")
        bound = self._bind(observers)
        # Imported here: listing and loading backends need neither sockets nor threads.
        from kv_core.runtime import create_manager  # noqa: PLC0415

        return create_manager(self._record, _role(role), args, config or TransferConfig(), bound)

    def _bind(self, observers: Sequence[object]) -> Observers:
        given = [hook for position, observer in enumerate(observers) for hook in _given(observer, position, observers)]
        hooks = [*self._own_hooks, *self._plugin_hooks(), *given]
        return Observers(
            room=tuple(hook.bound_to_event() for hook in hooks if hook.name == "kv_room_event"),
            peer=tuple(hook.bound_to_event() for hook in hooks if hook.name == "kv_peer_event"),
        )


def _role(role: object) -> Role:
    try:
        return Role(role)
    except ValueError:
        raise InvalidConfig(f"role is {role!r}, must be Role.PREFILL or Role.DECODE") from None


def _given(observer: object, position: int, observers: Sequence[object]) -> tuple[Hook, ...]:
    try:
        if any(observer is other for other in observers[:position]):
            raise Fault("the same object is given twice and would be told everything twice", "Give it once")
        return observer_hooks(observer)
    except Fault as fault:
        raise InvalidConfig(f"observers[{position}]: {fault}") from None
