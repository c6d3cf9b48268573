"""``--kv-events-config``: one JSON object, with SGLang's and vLLM's keys and a few of ours."""

from __future__ import annotations

import difflib
from typing import Any

import msgspec

from kv_core.contract.failures import InvalidConfig


class KVEventsConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What a publisher is made from. The first nine are SGLang's, with its defaults.

    publisher: "null", "zmq" or a name given to ``register_publisher``. endpoint, replay_endpoint: of rank 0; see
    ``offset_endpoint_port``; port 0 takes a free one. bind: None follows SGLang's rule (``endpoints.binds``).
    buffer_steps: batches kept for replay. hwm: batches waiting for one subscriber. max_queue_size: batches waiting for the
    sender's thread. topic: may be a template (``topics.fill``). format: "dynamo" if the cache's hashes are namespaced.

    profile: the wire profile; None: "map", or "dynamo" with that format. first_seq: "clock" (a later life has higher
    numbers) or "zero" (as SGLang; Dynamo and sgl-router then miss a restart). topic_values: for the topic's template.
    advertise_host: what others reach this host by, in place of a wildcard; default 127.0.0.1.
    enable_kv_cache_events: vLLM's switch; false turns everything off, true means "zmq" where no publisher is named.
    """

    publisher: str = "null"
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    bind: bool | None = None
    buffer_steps: int = 10_000
    hwm: int = 100_000
    max_queue_size: int = 100_000
    topic: str = ""
    format: str = "default"
    profile: str | None = None
    first_seq: str = "clock"
    topic_values: dict[str, str] = {}
    advertise_host: str = "127.0.0.1"
    enable_kv_cache_events: bool | None = None

    def __post_init__(self) -> None:
        for name, low in (("buffer_steps", 1), ("hwm", 0), ("max_queue_size", 1)):
            if getattr(self, name) < low:
                raise InvalidConfig(f"KV events: {name} has to be at least {low}, is {getattr(self, name)}")
        for name, allowed in (("format", ("default", "dynamo")), ("first_seq", ("clock", "zero"))):
            if getattr(self, name) not in allowed:
                raise InvalidConfig(f"KV events: {name} has to be one of {allowed}, is {getattr(self, name)!r}")

    @classmethod
    def from_cli(cls, cli_value: str) -> KVEventsConfig:
        """Read the JSON. Raises ``InvalidConfig``, naming the key."""
        raw = parse(cli_value)
        unknown = sorted(set(raw) - set(cls.__struct_fields__))
        if unknown:
            near = difflib.get_close_matches(unknown[0], cls.__struct_fields__, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(cls.__struct_fields__)}"
            raise InvalidConfig(f"KV events: unknown key {unknown[0]!r}{hint}")
        try:
            return msgspec.convert(raw, cls)
        except msgspec.ValidationError as error:
            raise InvalidConfig(f"KV events: {error}") from error

    @property
    def wire_profile(self) -> str:
        """The profile's name, with the default filled in."""
        return self.profile or ("dynamo" if self.format == "dynamo" else "map")


def parse(cli_value: str) -> dict[str, Any]:
    """The JSON object of a configuration. Raises ``InvalidConfig``."""
    try:
        raw = msgspec.json.decode(cli_value)
    except msgspec.DecodeError as error:
        raise InvalidConfig(f"KV events: the configuration is no JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InvalidConfig('KV events: the configuration has to be a JSON object, like {"publisher": "zmq"}')
    return raw


def publisher_of(raw: dict[str, Any]) -> str:
    """Which publisher a configuration asks for."""
    enabled = raw.get("enable_kv_cache_events")
    if enabled is False:
        return "null"
    return str(raw.get("publisher") or ("zmq" if enabled else "null"))
