"""What the doctor is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kv_core.cli.doctor.jobs import Layout
from kv_core.contract.enums import Role
from kv_core.runtime.bootstrap.addresses import parse_address

DEFAULT_BOOTSTRAP_PORT = 8998


@dataclass(frozen=True)
class DoctorSettings:
    """Settings of one run. ``timeout_s``: patience with each step that moves or waits, in seconds.

    ``backend``: the one that shall work (None: every installed one is looked at). ``peer``: bootstrap address of a live prefill
    instance, ``layout``: this side's layout. ``host``, ``advertised_host``, ``bootstrap_port``, ``control_port``: as
    they are going to be configured; None: not said. ``options``: the backend's settings by role ("" for both). ``static``: only
    look, move nothing. ``shm``: where shared memory is mounted.
    """

    backend: str | None = None
    peer: str | None = None
    layout: Layout | None = None
    host: str | None = None
    advertised_host: str | None = None
    bootstrap_port: int | None = None
    control_port: int | None = None
    require_transport: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    timeout_s: float = 20.0
    static: bool = False
    shm: Path = Path("/dev/shm")  # noqa: S108 - looked at, not written to

    def options_for(self, role: Role) -> dict[str, object]:
        """The backend's settings on one side."""
        return {**self.options.get("", {}), **self.options.get(role.value, {})}


def serving_address(text: str) -> tuple[str, int]:
    """Host and port to serve at; port 0 takes a free one. Raises ``InvalidConfig``."""
    if text.endswith(":0"):
        return parse_address(f"{text[:-1]}1")[0], 0
    return parse_address(text)


def read_layout(path: Path) -> Layout:
    """The layout in a JSON file. Raises ``ValueError`` with what is wrong with it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Layout)
    except OSError as error:
        raise ValueError(f"--layout {path} can't be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ValueError(f"--layout {path} is no layout: {error} (docs/doctor.md shows one)") from error
