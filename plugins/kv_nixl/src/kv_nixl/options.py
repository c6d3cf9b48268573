"""``TransferConfig.options`` of this backend: what they are, what they may be, and what is chosen where nothing is said."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import msgspec

LOOPBACK = ("127.", "localhost", "::1")
POOL_THREADS = 8
"""Threads that copy where UCX copies between processes: 1.5 to 1.7 times the goodput of none, already on two cores."""
SLOW_IN_THREADS = frozenset({"tcp", "self", "sockcm"})


Count = Annotated[int, msgspec.Meta(ge=0)] | Literal["auto"]


class NixlOptions(msgspec.Struct, frozen=True):
    """``TransferConfig.options``.

    backend: NIXL's name of it. params: its initial parameters, handed over as they are (as text). devices: network
    devices that it may use (UCX only; none: all), as a list or separated by commas. num_threads: NIXL's own threads, or
    "auto". progress_delay_us: longest sleep of NIXL's progress thread, which events end earlier; 0: no such thread;
    "auto": see ``progress_delay``.
    """

    backend: Annotated[str, msgspec.Meta(min_length=1)] = "UCX"
    params: dict[str, str | int] = {}
    devices: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] | str = ()
    num_threads: Count = "auto"
    progress_delay_us: Count = "auto"

    @property
    def device_names(self) -> tuple[str, ...]:
        """The devices, one by one."""
        names = self.devices.split(",") if isinstance(self.devices, str) else self.devices
        return tuple(name.strip() for name in names if name.strip())

    def transports(self) -> frozenset[str]:
        """The transports that UCX is confined to; empty if it may choose (or is told which ones not to use)."""
        text = os.environ.get("UCX_TLS", "")
        for setting in str(self.params.get("engine_config", "")).split(","):  # the environment wins: NIXL has it so
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
        """Longest sleep of NIXL's progress thread in microseconds, 0 for none. "auto": on the side that posts nothing,
        where nobody else drives the engine.
        """
        if isinstance(self.progress_delay_us, int):
            return self.progress_delay_us
        return 0 if initiator else 1000
