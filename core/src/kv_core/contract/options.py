"""A backend's own settings: ``TransferConfig.options``, checked against a declared type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from kv_core.contract.failures import InvalidConfig

Options = TypeVar("Options", bound=msgspec.Struct)


def parse_options(kind: type[Options], options: Mapping[str, object], *, backend: str) -> Options:
    """``options`` as a ``kind``: a ``msgspec.Struct`` whose fields have types, limits (``msgspec.Meta``) and defaults.

    Raises ``InvalidConfig`` for an option that ``kind`` does not have, and for a value of another type or beyond its
    limits; what ``kind.__post_init__`` raises as ``ValueError`` is such a value, too. A plugin's constructor calls it, so
    that a mistake is told before the engine is loaded. Any thread.
    """
    names = [field.name for field in msgspec.structs.fields(kind)]
    unknown = sorted(str(name) for name in options if name not in names)
    if unknown:
        raise InvalidConfig(
            f"TransferConfig.options: backend {backend} has no option {', '.join(map(repr, unknown))}; it has {', '.join(names)}"
        )
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        raise InvalidConfig(
            f"TransferConfig.options of backend {backend}: {error} (of {dict(options)!r}); `$` is the options themselves"
        ) from error
