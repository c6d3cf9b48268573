"""``TransferConfig.options`` of this backend: checked, and turned into what the engine wants to be told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kv_core import InvalidConfig

DEVICES = Path("/sys/class/infiniband")
PROTOCOLS = ("auto", "tcp", "rdma")

# The engine refuses what goes beyond its own bounds on what waits for one peer, and what waits longer than its patience.
# What is posted here stays below its defaults; these are for what else there may be to the same peer at that time.
_ROOMY = {
    "MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER": "65535",
    "MC_TCP_MAX_PENDING_ADMISSIONS_PER_PEER": "65535",
    "MC_TCP_ADMISSION_TIMEOUT_MS": "600000",
}
_MIN_TIMEOUT_S = 5
_TIMEOUT_S = 30


@dataclass(frozen=True)
class Options:
    """protocol: ``tcp``, ``rdma``, or ``auto`` (default): RDMA if the host has a device for it, else TCP.

    devices: names of RDMA devices to use (a list, or one string with commas); none: all that the engine finds.
    failures_to_open: failed submissions in a row after which a peer's breaker opens; retry_after_s: how long it then
    refuses before the peer is probed.
    """

    protocol: str = "auto"
    devices: tuple[str, ...] = ()
    failures_to_open: int = 3
    retry_after_s: float = 1.0
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def fabric(self) -> str:
        """What is in use, in words."""
        return " ".join([self.protocol, *([",".join(self.devices)] if self.devices else [])])

    @classmethod
    def parse(cls, options: Mapping[str, object]) -> Options:
        """The options with ``auto`` decided. Raises ``InvalidConfig``."""
        known: dict[str, Any] = {"protocol": "auto", "devices": (), "failures_to_open": 3, "retry_after_s": 1.0}
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise InvalidConfig(f"TransferConfig.options has {unknown}, kv-mooncake knows {sorted(known)}")
        known.update(options)
        protocol = known["protocol"]
        if protocol not in PROTOCOLS:
            raise InvalidConfig(f"TransferConfig.options['protocol'] is {protocol!r}, must be one of {PROTOCOLS}")
        devices = _devices(known["devices"])
        present = present_devices()
        missing = [name for name in devices if name not in present]
        if missing:
            raise InvalidConfig(
                f"TransferConfig.options['devices'] names {missing}, this host has {present or 'no RDMA devices'} "
                f"(see {DEVICES})"
            )
        if protocol == "auto":
            protocol = "rdma" if present and not os.environ.get("MC_FORCE_TCP") else "tcp"
        if protocol == "rdma":
            _check_rdma(present)
        elif devices:
            raise InvalidConfig("TransferConfig.options: 'devices' are RDMA devices, and the protocol is tcp")
        return cls(
            protocol,
            devices if devices or protocol == "tcp" else tuple(present),
            _number(known, "failures_to_open", whole=True),
            _number(known, "retry_after_s", whole=False),
            {"MC_FORCE_TCP": "1", **_ROOMY} if protocol == "tcp" else _ROOMY,
        )


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


def _devices(value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name.strip() for name in names):
        raise InvalidConfig(
            f"TransferConfig.options['devices'] is {value!r}, must be a list of names such as ['mlx5_0']"
        )
    return tuple(dict.fromkeys(name.strip() for name in names))


def _check_rdma(present: list[str]) -> None:
    if not present:
        raise InvalidConfig(
            f"TransferConfig.options['protocol'] is 'rdma', and this host has no RDMA device ({DEVICES} is empty or absent): "
            "load the driver, pass the devices into the container, or use protocol='tcp'"
        )
    if os.environ.get("MC_FORCE_TCP"):
        raise InvalidConfig("TransferConfig.options['protocol'] is 'rdma', and MC_FORCE_TCP is set: unset it")


def _number(options: Mapping[str, Any], name: str, *, whole: bool) -> Any:
    value = options[name]
    if (type(value) is not int and (whole or type(value) is not float)) or not value > 0:
        kind = "whole number" if whole else "number"
        raise InvalidConfig(f"TransferConfig.options[{name!r}] is {value!r}, must be a {kind} greater than 0")
    return value
