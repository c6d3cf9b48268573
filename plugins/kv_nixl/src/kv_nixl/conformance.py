"""Where the conformance suite finds kv-nixl: on one host, over whatever UCX chooses there. Needs kv-conformance."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from kv_conformance import Fault, Harness, Setting
from kv_core import Role

LOAD = """
from kv_nixl.engine import load_engine
try:
    load_engine()
except ImportError as error:
    print(error)
"""


class NixlHarness(Harness):
    """NIXL as it is: UCX copies between the processes of one host, or takes an RDMA device."""

    def prerequisites(self) -> Sequence[str]:
        """NIXL itself. Loaded in a process of its own: this one must not have it, and some of it can't be unloaded."""
        # What is no ImportError is no missing piece: then the checks run, and fail with it.
        done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=False)  # noqa: S603
        return [f"NIXL can't be loaded here: {done.stdout.strip()}"] if done.stdout.strip() else []

    def setting(self, role: Role, fault: Fault | None = None) -> Setting:
        """Over TCP where bytes are to be held back: a copy between processes asks nobody on the other side."""
        if fault is Fault.HOLD_DATA:
            return Setting(environment={"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"})
        return Setting()
