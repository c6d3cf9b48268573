"""Lets child processes work as an engine's would: register, serve and fetch on this machine, visit a peer."""

from __future__ import annotations

import secrets

import msgspec

from kv_core.cli.doctor import live
from kv_core.cli.doctor.facts.peer import PeerFacts
from kv_core.cli.doctor.jobs import Fetch, ManagerSettings, Moved, Register, Serve, Serving
from kv_core.cli.doctor.live import Measurement
from kv_core.cli.doctor.memory import BULK_BYTES, PAGES, own_layout
from kv_core.cli.doctor.processes import Child, Outcome, run
from kv_core.cli.doctor.rooms import ROOMS
from kv_core.cli.doctor.settings import DoctorSettings
from kv_core.contract.enums import Role
from kv_core.contract.records import CheckStatus, DoctorFinding

SIZES = (4_096, BULK_BYTES)
"""What is registered: one page of memory, and as much as is moved."""
STEPS = 3.0
SPARE_S = 20.0
"""A child may take this many times the patience of one step, and so much more for its start and its end."""
TOLD_S = 5.0
"""How long the writing side has to tell how it went, once the pages have arrived."""


class Worker:
    """``host``, ``advertised_host``: where managers listen, and what they tell peers."""

    def __init__(self, settings: DoctorSettings, host: str, advertised_host: str | None) -> None:
        self._settings = settings
        self._host = host
        self._advertised_host = advertised_host
        self._limit_s = STEPS * settings.timeout_s + SPARE_S

    def loopback(self, name: str, *, better: str) -> tuple[list[DoctorFinding], Measurement | None]:
        """Register and move with one backend, from process to process. ``better``: what is there that is faster than TCP."""
        found = list(
            live.registered(name, SIZES, run(Register(self._manager(name, Role.PREFILL), SIZES), self._limit_s))
        )
        if any(finding.status is CheckStatus.PROBLEM for finding in found):
            return found, None
        prefill, decode = self._move(name)
        found += live.loopback(name, prefill, decode, better=better)
        moved = decode.every(Moved) if decode is not None else []
        return found, live.best(name, "loopback", moved, live.writers_fabric(prefill))

    def _move(self, name: str) -> tuple[Outcome, Outcome | None]:
        decode = None
        with Child(Serve(self._manager(name, Role.PREFILL), 0, own_layout(), PAGES)) as prefill:
            serving = prefill.wait_for(Serving, self._limit_s)
            if serving is not None:
                job = Fetch(self._manager(name, Role.DECODE), serving.address, own_layout(), PAGES, ROOMS)
                decode = run(job, self._limit_s)
                if decode.first(Moved) is not None:
                    prefill.wait_for(Moved, TOLD_S)
            return prefill.end(), decode

    def visit(self, found: PeerFacts, backend: str) -> Outcome:
        """Meet a prefill instance that could be asked for its route; fetch pages if a doctor serves there."""
        route = found.route
        assert route is not None, "it may be met"
        layout = self._settings.layout
        if layout is None:
            layout = own_layout()
            if not found.rooms:  # an engine: what it told of itself need not be the reason of its refusal
                layout = msgspec.structs.replace(
                    layout, page_size=route.page_size, dtype=route.kv_cache_dtype, kv_layout=route.kv_layout
                )
        if not layout.topology:
            sizes = zip(("tp_size", "pp_size", "cp_size", "dp_size"), route.sizes, strict=True)
            layout = msgspec.structs.replace(layout, topology=dict(sizes))
        rooms = list(found.rooms)
        secrets.SystemRandom().shuffle(rooms)
        manager = msgspec.structs.replace(
            self._manager(backend, Role.DECODE), control_port=self._settings.control_port or 0
        )
        pages = PAGES if rooms else 1
        return run(Fetch(manager, found.addr, layout, pages, tuple(rooms)), self._limit_s)

    def _manager(self, name: str, role: Role) -> ManagerSettings:
        settings = self._settings
        return ManagerSettings(
            name, self._host, self._advertised_host, settings.options_for(role), settings.require_transport,
            settings.timeout_s,
        )  # fmt: skip
