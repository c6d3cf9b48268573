"""Topics: a text, or a template that is filled in once the port is known. llm-d needs ``kv@{ip:port}@{model}``. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kv_core.contract.failures import InvalidConfig
from kv_core.events.endpoints import split_tcp

_FIELD = re.compile(r"\{([^{}]*)\}")
FIELDS = ("ip:port", "ip", "port", "model", "dp_rank")


def fill(template: str, *, endpoint: str, dp_rank: int, values: Mapping[str, str]) -> str:
    """The topic.

    ``{ip:port}``, ``{ip}`` and ``{port}`` are those of `endpoint`, as others reach it, unless `values` has them: in llm-d
    ``{ip:port}`` is the pod's identity, which is where it serves. ``{model}`` comes from `values` alone. Raises
    ``InvalidConfig`` for a name that is unknown or has no value.
    """

    def value(found: re.Match[str]) -> str:
        name = found.group(1)
        if name in values:
            return values[name]
        if name == "dp_rank":
            return str(dp_rank)
        if name in {"ip:port", "ip", "port"}:
            host, port = split_tcp(endpoint)
            return {"ip:port": f"{host}:{port}", "ip": host, "port": str(port)}[name]
        if name in FIELDS:
            raise InvalidConfig(
                f'topic {template!r}: no value for {{{name}}}; give it in "topic_values": {{"{name}": ...}}'
            )
        raise InvalidConfig(f"topic {template!r}: unknown field {{{name}}}; known are {', '.join(FIELDS)}")

    return _FIELD.sub(value, template)
