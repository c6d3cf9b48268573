"""Where the conformance suite finds kv-mooncake: on one host, over RDMA where there is a device, or TCP. Needs
kv-conformance.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from kv_conformance import Fault, Harness, Setting
from kv_core import Role

LOAD = """
from kv_mooncake.engine import preflight
try:
    preflight()
except ImportError as error:
    print(error)
"""


class MooncakeHarness(Harness):
    """Mooncake's engine as it is."""

    def prerequisites(self) -> Sequence[str]:
        """The engine's wheel and what it links. Loaded in a process of its own: this one must not have it."""
        # What is no ImportError is no missing piece: then the checks run, and fail with it.
        done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=False)  # noqa: S603
        return [f"the Mooncake engine can't be loaded here: {done.stdout.strip()}"] if done.stdout.strip() else []

    def setting(self, role: Role, fault: Fault | None = None) -> Setting:
        """Over TCP where bytes are to be held back: an RDMA device asks no process that was stopped."""
        return Setting(options={"protocol": "tcp"}) if fault is Fault.HOLD_DATA else Setting()
