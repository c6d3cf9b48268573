"""``--option KEY=VALUE``: settings that are handed to the backend as they are."""

from __future__ import annotations

import json
from collections.abc import Iterable

from kv_core.contract.enums import Role

ROLES = tuple(role.value for role in Role)


def parse_options(texts: Iterable[str]) -> dict[str, dict[str, object]]:
    """Options by the role that they are for ("" for both); the last one of a key wins.

    A value is JSON (``3``, ``true``, ``{"a": 1}``) or, if it is none, text. Raises ``ValueError`` for what is no
    KEY=VALUE.
    """
    options: dict[str, dict[str, object]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        first, dot, rest = key.partition(".")
        role, name = (first, rest) if dot and first in ROLES else ("", key)
        if not equals or not name:
            raise ValueError(f"--option {text!r} must be KEY=VALUE, or ROLE.KEY=VALUE with one of the roles {ROLES}")
        options.setdefault(role, {})[name] = _value(value)
    return options


def _value(text: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value
