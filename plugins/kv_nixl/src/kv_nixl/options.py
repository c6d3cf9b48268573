"""``TransferConfig.options`` of this backend: what they are, what they may be, and what is chosen where nothing is said."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from kv_core import InvalidConfig

LOOPBACK = ("127.", "localhost", "::1")
POOL_THREADS = 8
"""Threads that copy where UCX copies between processes: 1.5 to 1.7 times the goodput of none, already on two cores."""
SLOW_IN_THREADS = frozenset({"tcp", "self", "sockcm"})


@dataclass(frozen=True)
class NixlOptions:
    """Checked options.

    backend: NIXL's name of it. params: its initial parameters, handed over as they are (as text). devices: network
    devices that it may use (UCX only; none: all). num_threads: NIXL's own threads, or "auto". progress_delay_us: longest
    sleep of NIXL's progress thread, which events end earlier; 0: no such thread; "auto": see ``progress_delay``.
    """

    backend: str = "UCX"
    params: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    num_threads: int | str = "auto"
    progress_delay_us: int | str = "auto"

    @classmethod
    def parse(cls, options: Mapping[str, object]) -> NixlOptions:
        """Check ``options``. Raises ``InvalidConfig`` that names the option and what it should be."""
        known = [option.name for option in fields(cls)]
        for name in options:
            if name not in known:
                raise InvalidConfig(f"unknown option {name!r}; the options of backend nixl are {', '.join(known)}")
        params, devices = options.get("params", {}), options.get("devices", ())
        backend = options.get("backend", cls.backend)
        if not isinstance(backend, str) or not backend:
            raise InvalidConfig(f"option backend is {backend!r}, must be the name of a NIXL backend, like 'UCX'")
        if not isinstance(params, Mapping):
            raise InvalidConfig(f"option params is {params!r}, must be a mapping of the backend's parameters")
        if isinstance(devices, str):
            devices = [name.strip() for name in devices.split(",") if name.strip()]
        if not isinstance(devices, list | tuple) or not all(isinstance(name, str) and name for name in devices):
            raise InvalidConfig(f"option devices is {devices!r}, must be a list of device names, like ['mlx5_0']")
        return cls(
            backend,
            {str(name): str(value) for name, value in params.items()},
            tuple(devices),
            _count("num_threads", options),
            _count("progress_delay_us", options),
        )

    def transports(self) -> frozenset[str]:
        """The transports that UCX is confined to; empty if it may choose (or is told which ones not to use)."""
        text = os.environ.get("UCX_TLS", "")
        for setting in self.params.get("engine_config", "").split(","):  # the environment wins: NIXL has it so
            name, _, value = setting.partition("=")
            if name.strip() == "TLS" and not text:
                text = value
        names = frozenset(name.strip() for name in text.split(",") if name.strip())
        return frozenset() if text.startswith("^") or "all" in names else names

    def threads(self, *, initiator: bool, host: str) -> int:
        """Number of NIXL's own threads. "auto": ``POOL_THREADS`` for UCX on the side that posts, where every peer is on
        this host (it advertises a loopback address) and UCX may copy between processes; otherwise none, for over TCP
        they cost more than half of the goodput, and over RDMA nobody has measured them here.
        """
        if isinstance(self.num_threads, int):
            return self.num_threads
        confined = self.transports()
        copies = not confined or not confined <= SLOW_IN_THREADS
        return POOL_THREADS if initiator and self.backend == "UCX" and host.startswith(LOOPBACK) and copies else 0

    def progress_delay(self, *, initiator: bool) -> int:
        """Longest sleep of NIXL's progress thread in microseconds, 0 for none. "auto": on the side that is written to,
        where nobody else drives the engine.
        """
        if isinstance(self.progress_delay_us, int):
            return self.progress_delay_us
        return 0 if initiator else 1000


def _count(name: str, options: Mapping[str, object]) -> int | str:
    value = options.get(name, "auto")
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise InvalidConfig(f"option {name} is {value!r}, must be a number that is not negative, or 'auto'")
