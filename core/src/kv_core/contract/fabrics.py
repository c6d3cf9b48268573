"""Whether the fabric that a transport says it uses is one that somebody asked for. Words, compared without regard to case."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kv_core.contract.failures import InvalidConfig

_BETWEEN_WORDS = re.compile(r"[\s,;/]+")


def words_of(text: str) -> frozenset[str]:
    """The words of a fabric's name, in lower case: ``"rdma mlx5_0,mlx5_1"`` has three."""
    return frozenset(word for word in _BETWEEN_WORDS.split(text.lower()) if word)


def required_fabrics(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """``TransferConfig.require_transport`` as a tuple: empty for None. Raises ``InvalidConfig`` for what names no fabric."""
    if value is None:
        return ()
    given: tuple[object, ...] = (value,) if isinstance(value, str) else tuple(value)
    if not given or not all(isinstance(each, str) and words_of(each) for each in given):
        raise InvalidConfig(
            f"TransferConfig.require_transport is {value!r}, must be a fabric's name such as 'rdma', several of which one "
            "will do, or None for whatever there is"
        )
    return tuple(" ".join(str(each).split()).lower() for each in given)


def meets(required: Sequence[str], fabric: str) -> bool:
    """Whether a fabric's name has all words of one of the required ones.

    A name with " or " in it ("rdma or xgmi") stands for fabrics of which the transport can't tell the one that is used:
    then each of them has to do.
    """
    return all(
        any(words_of(wanted) <= words_of(possible) for wanted in required) for possible in fabric.lower().split(" or ")
    )
