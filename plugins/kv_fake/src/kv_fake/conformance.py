"""Where the conformance suite finds kv-fake: over the loopback interface, with nothing else. Needs kv-conformance."""

from __future__ import annotations

from kv_conformance import Fault, Harness, Setting
from kv_core import Role


class FakeHarness(Harness):
    """The software NIC. Its receiver takes part in each copy, so stopping that process holds the bytes back."""

    def setting(self, role: Role, fault: Fault | None = None) -> Setting:
        """Every fault can be made; the fault script refuses a region."""
        if fault is Fault.REGISTRATION:
            return Setting(options={"faults": [{"kind": "fail_registration", "nth": 2}]}, refused_region=1)
        return Setting()
