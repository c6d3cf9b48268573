"""From a configuration to a publisher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from kv_core.contract.failures import InvalidConfig
from kv_core.events.config import KVEventsConfig, parse, publisher_of
from kv_core.events.publisher import EventPublisher, NullEventPublisher
from kv_core.events.zmq_publisher import ZmqEventPublisher


class EventPublisherFactory:
    """Makes publishers by name. Others than "null" and "zmq" are registered once per process."""

    _registry: ClassVar[dict[str, Callable[..., EventPublisher]]] = {}

    @classmethod
    def register_publisher(cls, name: str, ctor: Callable[..., EventPublisher]) -> None:
        """Make `name` known. `ctor` is called with ``attn_dp_rank`` and the configuration's other keys as they stand.

        Raises KeyError if the name is taken.
        """
        if name in cls._registry or name in {"null", "zmq"}:
            raise KeyError(f"publisher {name!r} is registered already")
        cls._registry[name] = ctor

    @classmethod
    def create(cls, config: str | None, attn_dp_rank: int = 0) -> EventPublisher:
        """The publisher that the JSON `config` asks for; without one the null publisher. Raises ``InvalidConfig``."""
        if not config:
            return NullEventPublisher(attn_dp_rank)
        raw = parse(config)
        kind = publisher_of(raw)
        if kind in cls._registry:
            others = {key: value for key, value in raw.items() if key not in {"publisher", "enable_kv_cache_events"}}
            return cls._registry[kind](attn_dp_rank=attn_dp_rank, **others)
        if kind not in {"null", "zmq"}:
            known = ", ".join(["null", "zmq", *sorted(cls._registry)])
            raise InvalidConfig(f"unknown event publisher {kind!r}; known are {known}")
        checked = KVEventsConfig.from_cli(config)
        return _zmq(checked, attn_dp_rank) if kind == "zmq" else NullEventPublisher(attn_dp_rank)


def _zmq(config: KVEventsConfig, attn_dp_rank: int) -> ZmqEventPublisher:
    values: dict[str, Any] = {name: getattr(config, name) for name in config.__struct_fields__}
    for name in ("publisher", "enable_kv_cache_events"):
        del values[name]
    return ZmqEventPublisher(attn_dp_rank=attn_dp_rank, **values)
