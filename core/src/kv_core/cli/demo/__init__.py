"""``kv-core demo``: pages move from a prefill process to a decode process, and every byte is compared.

Three processes, as in a deployment. The parent (``router``) plays the router: it has the bootstrap server, gives each
request to both ranks with the same room, restarts a rank that died, and adds up. A rank (``rank``) is a process with
memory, a manager and a loop such as an engine has: ``engine_prefill`` fills pages and sends them, ``engine_decode``
names poisoned pages and compares what arrived with what it works out by itself (``pages``). Router and ranks talk in
lines of JSON over pipes (``lines``).
"""

from __future__ import annotations

from kv_core.cli.demo.settings import DemoSettings


def run_demo(settings: DemoSettings, *, as_json: bool) -> int:
    """Run the demo, report on standard output, and return the exit status."""
    # Imported here: the ranks are modules of this package and need neither the router nor rich.
    from kv_core.cli.demo.command import run  # noqa: PLC0415

    return run(settings, as_json=as_json)


__all__ = ["DemoSettings", "run_demo"]
