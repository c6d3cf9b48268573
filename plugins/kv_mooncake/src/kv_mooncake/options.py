"""``TransferConfig.options`` of this backend, and what of the host and the environment bears on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct

from kv_core import InvalidConfig, parse_options

DEVICES = Path("/sys/class/infiniband")

# The engine refuses what goes beyond its own bounds on what waits for one peer, and what waits longer than its patience.
# What is posted here stays below its defaults; these are for what else there may be to the same peer at that time.
_ROOMY = {
    "MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER": "65535",
    "MC_TCP_MAX_PENDING_ADMISSIONS_PER_PEER": "65535",
    "MC_TCP_ADMISSION_TIMEOUT_MS": "600000",
}
_MIN_TIMEOUT_S = 5
_TIMEOUT_S = 30


class Options(Struct, frozen=True):
    """protocol: ``tcp``, ``rdma``, or ``auto``: RDMA if the host has a device for it, else TCP.

    devices: names of RDMA devices to use; none: all. failures_to_open: failed submissions in a row after which a peer's
    breaker opens; retry_after_s: how long it then refuses before the peer is probed.
    """

    protocol: Literal["auto", "tcp", "rdma"] = "auto"
    devices: tuple[str, ...] = ()
    failures_to_open: Annotated[int, Meta(ge=1)] = 3
    retry_after_s: Annotated[float, Meta(gt=0)] = 1.0


class Fabric(NamedTuple):
    """What the engine is told to use. ``protocol`` is tcp or rdma; ``devices`` are those of the latter."""

    protocol: str
    devices: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In words, for people."""
        return " ".join([self.protocol, *filter(None, [",".join(self.devices)])])

    @property
    def environment(self) -> dict[str, str]:
        """What the engine shall find in its environment when it starts."""
        return {"MC_FORCE_TCP": "1", **_ROOMY} if self.protocol == "tcp" else _ROOMY


def read(options: Mapping[str, object]) -> tuple[Options, Fabric]:
    """The options, and what they mean on this host. Raises ``InvalidConfig``."""
    chosen = parse_options(Options, options, backend="mooncake")
    present = present_devices()
    missing = [name for name in chosen.devices if name not in present]
    if missing:
        has = ", ".join(present) or "no RDMA devices"
        raise InvalidConfig(
            f"option devices names {', '.join(map(repr, missing))}, this host has {has} (see {DEVICES})"
        )
    forced = bool(os.environ.get("MC_FORCE_TCP"))
    if os.environ.get("MC_TCP_PROTO") == "1":
        raise InvalidConfig("MC_TCP_PROTO=1 is set: the engine then calls copies done that have not landed. Unset it")
    if chosen.protocol == "tcp" or (chosen.protocol == "auto" and (forced or not present)):
        if chosen.devices:
            raise InvalidConfig("option devices names RDMA devices, and the protocol is tcp: leave one of the two out")
        return chosen, Fabric("tcp")
    if not present:
        raise InvalidConfig(
            f"option protocol is 'rdma', and this host has no RDMA device ({DEVICES} is empty or absent): load the driver, "
            "pass the devices into the container, or use protocol 'tcp'"
        )
    if forced:
        raise InvalidConfig("option protocol is 'rdma', and MC_FORCE_TCP is set: unset it")
    return chosen, Fabric("rdma", chosen.devices or tuple(present))


def present_devices() -> list[str]:
    """The RDMA devices of this host."""
    try:
        return sorted(path.name for path in DEVICES.iterdir())
    except OSError:  # no such folder: no driver is loaded
        return []


def engine_timeout_s() -> float:
    """How long the engine waits for a batch, besides a nanosecond for each byte."""
    text = os.environ.get("MC_TRANSFER_TIMEOUT")
    if text is None:
        return _TIMEOUT_S
    try:
        return max(_MIN_TIMEOUT_S, int(text))
    except ValueError:
        raise InvalidConfig(f"MC_TRANSFER_TIMEOUT is {text!r}, must be whole seconds") from None
