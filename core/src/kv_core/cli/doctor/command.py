"""Runs the doctor, or lets it serve, and prints."""

from __future__ import annotations

import json
import signal
import sys
from time import monotonic

from rich.console import Console

from kv_core.cli.doctor.examine import LOAD_S, Examination
from kv_core.cli.doctor.installed import shortened
from kv_core.cli.doctor.jobs import ManagerSettings, Moved, Serve, Serving, Trouble
from kv_core.cli.doctor.live import best, speed
from kv_core.cli.doctor.memory import PAGES, own_layout
from kv_core.cli.doctor.processes import Child
from kv_core.cli.doctor.settings import DoctorSettings, serving_address
from kv_core.contract.enums import Role

LOOK_S = 1.0


def run(settings: DoctorSettings, *, as_json: bool) -> int:
    """Examine, report on standard output, return the exit status."""
    waiting = Console(stderr=True)
    with waiting.status("looking at what is installed") as status:
        report = Examination(settings, lambda what: status.update(f"looking at {what}")).report()
    if as_json:
        sys.stdout.write(report.to_json() + "\n")
    else:
        report.print(Console())
    return report.exit_status


def serve(settings: DoctorSettings, backend: str, addr: str, *, as_json: bool) -> int:
    """Be a prefill side that waits for ``kv-core doctor --peer``, until Ctrl-C or SIGTERM. Exit status 1 if it can't (any more).

    For the main thread: it takes SIGTERM, which is how containers and scripts end what they run (a shell's background jobs
    ignore SIGINT).
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    host, port = serving_address(addr)
    manager = ManagerSettings(
        backend, host, settings.advertised_host, settings.options_for(Role.PREFILL), settings.require_transport,
        settings.timeout_s, settings.control_port or 0,
    )  # fmt: skip
    with Child(Serve(manager, port, own_layout(), PAGES)) as child:
        try:
            serving = child.wait_for(Serving, LOAD_S)
            if serving is not None:
                _say(
                    as_json,
                    {"serving": serving.address, "backend": backend, "pid": child.pid},
                    _invitation(serving, backend),
                )
                _tell_of_visits(child, backend, as_json=as_json)
        except KeyboardInterrupt:
            child.end()
            return 0
        outcome = child.end()
    trouble = outcome.first(Trouble)
    text = trouble.message if trouble is not None else f"the serving process {outcome.ended}: {shortened(outcome.tail)}"
    _say(as_json, {"error": text}, f"can't serve: {text}")
    return 1


def _invitation(serving: Serving, backend: str) -> str:
    return (
        f"serving at {serving.address} until Ctrl-C. On the other machine: kv-core doctor --backend {backend} --peer "
        f"HOST:{serving.address.rpartition(':')[2]}"
    )


def _tell_of_visits(child: Child, backend: str, *, as_json: bool) -> None:
    while (news := child.read(monotonic() + LOOK_S)) is not None:
        for each in news:
            measured = best(backend, "visitor", [each]) if isinstance(each, Moved) else None
            if measured is not None:
                _say(
                    as_json,
                    measured.as_dict(),
                    f"a visitor fetched {measured.nbytes} bytes by {measured.transport}, {speed(measured)}",
                )
            elif isinstance(each, Trouble):
                _say(as_json, {"visitor": each.message}, f"a visitor's room failed: {each.message}")


def _say(as_json: bool, document: dict[str, object], text: str) -> None:
    sys.stdout.write((json.dumps(document) if as_json else text) + "\n")
    sys.stdout.flush()
