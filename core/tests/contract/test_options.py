"""Options of a backend: what is taken, and what is said of what is not."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from kv_core import InvalidConfig, parse_options


class Options(msgspec.Struct, frozen=True):
    threads: Annotated[int, msgspec.Meta(ge=0)] | Literal["auto"] = "auto"
    devices: tuple[str, ...] = ()
    params: dict[str, str] = {}
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.ratio > 1:
            raise ValueError("ratio must be at most 1")


def test_defaults_and_values() -> None:
    assert parse_options(Options, {}, backend="x") == Options()
    given = {"threads": 3, "devices": ["a", "b"], "params": {"k": "v"}, "ratio": 1}
    assert parse_options(Options, given, backend="x") == Options(3, ("a", "b"), {"k": "v"}, 1.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"thread": 1}, "backend x has no option 'thread'; it has threads, devices, params, ratio"),
        ({1: 1}, "backend x has no option '1'"),
        ({"threads": -1}, r"\$.threads"),
        ({"threads": "many"}, r"\$.threads"),
        ({"threads": True}, r"\$.threads"),
        ({"devices": "mlx5_0"}, r"Expected `array`, got `str` - at `\$.devices`"),
        ({"params": {"k": 1}}, r"\$.params"),
        ({"ratio": 2.0}, "ratio must be at most 1"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        parse_options(Options, given, backend="x")
