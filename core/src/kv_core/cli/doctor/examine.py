"""Goes through the areas: gathers facts, lets children work, collects what is found. One area's trouble ends no other."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from kv_core import __version__
from kv_core.cli.doctor import addresses, devices, host, installed, limits, live, peer
from kv_core.cli.doctor.facts.configured import look_at_addresses
from kv_core.cli.doctor.facts.devices import Devices, look_for_devices
from kv_core.cli.doctor.facts.distributions import engine_wheels
from kv_core.cli.doctor.facts.limits import look_at_limits
from kv_core.cli.doctor.facts.peer import PeerFacts, look_at_peer
from kv_core.cli.doctor.facts.process import look_at_processes
from kv_core.cli.doctor.jobs import LoadBackend, LoadPlugins, LookAtMachine, MachineSeen, Moved, PluginLoaded
from kv_core.cli.doctor.processes import Outcome, run
from kv_core.cli.doctor.report import Report
from kv_core.cli.doctor.settings import DoctorSettings
from kv_core.cli.doctor.work import Worker
from kv_core.contract.config import TransferConfig
from kv_core.contract.doctor import problem
from kv_core.contract.enums import Capability
from kv_core.contract.records import CheckStatus, DoctorFinding
from kv_core.registry import list_backends

ITSELF = problem(
    "doctor.broken",
    "The doctor itself failed while it looked at {area}: {error}",
    "Report this to kv-core's authors, with the output of --json",
)
LOAD_S = 120.0
"""For importing an engine with everything that it brings along."""
ANSWER_S = 5.0
AREAS = ("installed", "devices", "host", "limits", "addresses", "transfers", "peer")


class Examination:
    """One run. ``tell``: told what is being looked at, for people who wait. ``loaded``: backends that children have tried to
    load already, where ``installed`` is not among the areas.
    """

    def __init__(
        self, settings: DoctorSettings, tell: Callable[[str], None], loaded: Mapping[str, Outcome] | None = None
    ) -> None:
        self._settings = settings
        self._tell = tell
        self._findings: list[DoctorFinding] = []
        self._measurements: list[live.Measurement] = []
        self._installed = {each.name: each.distributions for each in list_backends()}
        self._loaded: dict[str, Outcome] = dict(loaded or {})
        self._machine = MachineSeen({})
        self._devices = Devices()
        self._place: tuple[str, str | None] = (TransferConfig().host, None)

    def report(self, only: Collection[str] = AREAS) -> Report:
        """Look at everything, or ``only`` at these areas."""
        areas: dict[str, Callable[[], Iterable[DoctorFinding]]] = {
            "installed": self._what_is_installed,
            "devices": self._what_devices,
            "host": lambda: host.host(look_at_processes()),
            "limits": lambda: limits.limits(look_at_limits(self._settings.shm), rdma=self._devices.rdma),
            "addresses": self._what_addresses,
        }
        if not self._settings.static:
            areas["transfers"] = self._transfers
        if self._settings.peer is not None:
            areas["peer"] = self._peer
        for area, look in areas.items():
            if area in only:
                self._tell(area)
                self._findings += self._guarded(area, look)
        return Report(self._about(), tuple(self._findings), tuple(self._measurements))

    def _guarded(self, area: str, look: Callable[[], Iterable[DoctorFinding]]) -> list[DoctorFinding]:
        found: list[DoctorFinding] = []
        try:
            found.extend(look())
        except Exception as error:  # noqa: BLE001 - whatever it is, the other areas are still worth looking at
            found.append(ITSELF.found(area=area, error=f"{type(error).__name__}: {error}"))
        return found

    def _about(self) -> dict[str, object]:
        settings = self._settings
        return {
            "kv_core": __version__, "python": platform.python_version(), "system": platform.platform(),
            "machine": platform.node(), "backend": settings.backend, "peer": settings.peer,
            "require_transport": list(settings.require_transport),
        }  # fmt: skip

    # -- looking ---------------------------------------------------------------------------------------------------

    def _what_is_installed(self) -> Iterator[DoctorFinding]:
        yield installed.VERSIONS.found(
            version=__version__, python=platform.python_version(), system=f"{platform.system()} {platform.release()}"
        )
        asked = self._settings.backend
        for name in self._installed if asked is None else [asked] if asked in self._installed else []:
            self._tell(f"backend {name}")
            self._loaded[name] = run(LoadBackend(name), LOAD_S)
        yield from installed.backends(self._loaded, asked, list(self._installed), sys.executable)
        yield from installed.plugins(run(LoadPlugins(), LOAD_S))
        self._machine = run(LookAtMachine(devices.LIBRARIES), LOAD_S).first(MachineSeen) or self._machine
        only = next(iter(self._installed)) if len(self._installed) == 1 else None
        wheels = engine_wheels({name: self._installed[name] for name in self._loaded})
        yield from installed.wheels(wheels, self._machine, asked or only)

    def _what_devices(self) -> Iterator[DoctorFinding]:
        self._devices = look_for_devices()
        yield from devices.devices(self._devices, self._machine)

    def _what_addresses(self) -> Iterator[DoctorFinding]:
        facts = look_at_addresses(self._settings)
        found = list(addresses.addresses(facts))
        yield from found
        hosts = [finding for finding in found if finding.id.startswith("address.")]
        if not any(finding.status is CheckStatus.PROBLEM for finding in hosts):
            self._place = (facts.host, self._settings.advertised_host)

    # -- working ---------------------------------------------------------------------------------------------------

    def _transfers(self) -> Iterator[DoctorFinding]:
        for name in installed.working(self._loaded):
            self._tell(f"backend {name}: registering memory, moving pages")
            found, measured = self._worker.loopback(name, better=self._better(name))
            yield from found
            self._measured(measured)

    @property
    def _worker(self) -> Worker:
        return Worker(self._settings, *self._place)

    def _measured(self, measured: live.Measurement | None) -> None:
        if measured is not None:
            self._measurements.append(measured)

    def _better(self, name: str) -> str:
        """What this machine has that is faster than TCP, as far as the backend could use it."""
        loaded = self._loaded[name].first(PluginLoaded)
        if loaded is None or Capability.EMBEDDED.value in loaded.report.capabilities:
            return ""
        names = sorted({port.device for port in self._devices.ports if port.usable})
        return f"RDMA devices ({', '.join(names)})" if names else ""

    # -- the peer --------------------------------------------------------------------------------------------------

    def _peer(self) -> Iterator[DoctorFinding]:
        found = look_at_peer(str(self._settings.peer), min(ANSWER_S, self._settings.timeout_s))
        yield from peer.reached(found)
        mine = self._mine(found)
        yield from peer.compared(found, mine)
        if mine.backend is None or self._settings.static or not peer.may_meet(found, mine):
            return
        outcome = self._worker.visit(found, mine.backend)
        yield from peer.met(found, mine, outcome, better=self._better(mine.backend))
        self._measured(live.best(mine.backend, found.addr, outcome.every(Moved)))

    def _mine(self, found: PeerFacts) -> peer.Mine:
        """What this side is: the backend that was asked for, else the peer's, if it works here."""
        able = installed.working(self._loaded)
        theirs = found.route.backend if found.route is not None else ""
        wanted = self._settings.backend or theirs
        loaded = self._loaded[wanted].first(PluginLoaded) if wanted in able else None
        version = loaded.report.version if loaded is not None else ""
        return peer.Mine(
            wanted if loaded is not None else None, version, __version__, self._settings.layout is not None
        )
